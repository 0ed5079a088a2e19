"""Step two of the method: describe what two images share and how they differ, then turn that into instructions (§3.1).

`engine: openai` sends requests to servers of a vision-language model and a language model; `engine: transformers` is
local inference; `engine: rule_based` needs no model and writes from the two captions. What surprises: where
the server is (`endpoint`) and what it may cost (`budget`) is in no hash and no manifest, so moving to another machine
never makes an artifact stale.
"""

from typing import TYPE_CHECKING

from megapairs_hf.core import lazy

if TYPE_CHECKING:
    from megapairs_hf.annotation.caption import Caption
    from megapairs_hf.annotation.client.budget import Budget
    from megapairs_hf.annotation.client.endpoint import Endpoint
    from megapairs_hf.annotation.config import CaptionConfig, DescribeConfig, InstructConfig, VerifyConfig
    from megapairs_hf.annotation.describe import Describe
    from megapairs_hf.annotation.instruct import Instruct
    from megapairs_hf.annotation.stage import caption_images, describe_pairs, instruct_pairs, verify_pairs
    from megapairs_hf.annotation.verify import Verify
else:
    __getattr__, __dir__ = lazy.exports(
        __name__,
        {
            "caption": ["Caption"],
            "client.budget": ["Budget"],
            "client.endpoint": ["Endpoint"],
            "config": ["CaptionConfig", "DescribeConfig", "InstructConfig", "VerifyConfig"],
            "describe": ["Describe"],
            "instruct": ["Instruct"],
            "stage": ["caption_images", "describe_pairs", "instruct_pairs", "verify_pairs"],
            "verify": ["Verify"],
        },
    )

__all__ = [
    "Budget",
    "Caption",
    "CaptionConfig",
    "Describe",
    "DescribeConfig",
    "Endpoint",
    "Instruct",
    "InstructConfig",
    "Verify",
    "VerifyConfig",
    "caption_images",
    "describe_pairs",
    "instruct_pairs",
    "verify_pairs",
]
