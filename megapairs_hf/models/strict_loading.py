"""A `Transformer` module that refuses a checkpoint with missing or unexpected weights, for the time of loading.

Its processor is loaded as `processor_loading` says. What surprises: it is never saved. After loading, the object is
made the stock class again, so that the folder names nothing but stock modules.
"""

from __future__ import annotations

from typing import Any

from sentence_transformers.base.modules import Transformer
from transformers import ProcessorMixin

from megapairs_hf.core.checkpoints import check_keys, refuse_pickles
from megapairs_hf.models.processor_loading import BACKEND, image_processor, videos_aside
from megapairs_hf.models.released_checkpoints import key_mapping


class CheckedTransformer(Transformer):
    """Loads like the stock module, and checks."""

    def __init__(self, model_name_or_path: str, *, processor_kwargs: dict[str, Any] | None = None, **settings: Any):
        images, others = image_processor(model_name_or_path, processor_kwargs or {})
        with videos_aside():
            super().__init__(model_name_or_path, processor_kwargs=others, **settings)
        if images is not None and isinstance(self.processor, ProcessorMixin):
            self.processor.image_processor = images
        # a folder that was saved before images had their own keywords
        if self.tokenizer is not None and self.tokenizer.init_kwargs.get("backend") == BACKEND["backend"]:
            del self.tokenizer.init_kwargs["backend"]

    def _load_model(self, model_name_or_path: str, *arguments: Any, **keywords: Any) -> Any:
        refuse_pickles(model_name_or_path)
        task, config, *others = arguments
        keywords |= {"output_loading_info": True, "use_safetensors": True}
        # so that a weight of another shape is listed with the rest
        keywords["ignore_mismatched_sizes"] = True
        names = key_mapping(str(config.model_type))
        if names:
            keywords["key_mapping"] = names
        model, info = super()._load_model(model_name_or_path, task, config, *others, **keywords)
        check_keys(model_name_or_path, info)
        return model

    def stock(self) -> Transformer:
        """The same object as the stock class."""
        self.__class__ = Transformer
        return self
