"""Step two of the method: describe what two images share and how they differ, then turn that into instructions (§3.1).

`engine: openai` asks a vision-language model and a language model over HTTP; `engine: transformers` runs them in
process; `engine: captions` is a stand-in that needs no model and writes from the two captions. What surprises: where
the server is (`Endpoint`) and what it may cost (`Budget`) is no part of the settings, so moving to another machine
never makes an artifact stale.
"""

from megapairs_hf.annotate.config import DescribeConfig, InstructConfig
from megapairs_hf.annotate.endpoint import Budget, Endpoint
from megapairs_hf.annotate.stage import describe_pairs, instruct_pairs
from megapairs_hf.annotate.verify import VerifyConfig, verify_pairs

__all__ = [
    "Budget",
    "DescribeConfig",
    "Endpoint",
    "InstructConfig",
    "VerifyConfig",
    "describe_pairs",
    "instruct_pairs",
    "verify_pairs",
]
