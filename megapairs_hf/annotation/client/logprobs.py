"""The probability of yes against no, from the tokens that a server lists for a response.

As rerankers read it (Qwen3 Reranker; UniME-V2's judge): p(yes) / (p(yes) + p(no)) where the response says either. What
surprises: several tokens say yes (`Yes`, ` yes`, `YES`), and the probabilities of all that are listed are added up;
servers list the tokens of a model's thoughts too, and no word of these counts.
"""

from __future__ import annotations

import math
import re
from itertools import accumulate
from typing import Any

# the most that TGI lists by default
TOP_LOGPROBS = 5
REQUESTED = {"logprobs": True, "top_logprobs": TOP_LOGPROBS}
# of thoughts, as a token of its own or in parts
THOUGHTS = re.compile(r"<(/?)think(?:ing)?>", re.IGNORECASE)
# around a token: blanks, the marks of tokenizers for them, quotes and the like
AROUND = " \t\r\n\u2581\u0120\u010a\"'`*.,:;!()[]"


def yes_probability(logprobs: Any, text: str) -> float | None:
    """The probability of yes, from 0 to 1; None where no token of the response says yes or no.

    Args:
        logprobs: of a choice of a chat completion, of whatever type a server makes it.
        text: of the response.
    """
    content = logprobs.get("content") if isinstance(logprobs, dict) else None
    places = [place for place in content if isinstance(place, dict)] if isinstance(content, list) else []
    tokens = [place["token"] if isinstance(place.get("token"), str) else "" for place in places]
    begin = _begin("".join(tokens), text)
    for place, end in zip(places, accumulate(map(len, tokens)), strict=True):
        if end <= begin or _word(place.get("token")) is None:
            continue
        listed = place.get("top_logprobs")
        known = {
            each["token"]: each for each in [*(listed if isinstance(listed, list) else ()), place] if _known(each)
        }
        sums = {"yes": 0.0, "no": 0.0}
        for token, each in known.items():
            # rounding may give a little more than 0
            sums[str(_word(token))] += math.exp(min(float(each["logprob"]), 0.0))
        total = sums["yes"] + sums["no"]
        return sums["yes"] / total if total > 0 else None
    return None


def _begin(spoken: str, text: str) -> int:
    """Where the answer begins in all tokens together; the end where it never does."""
    marks = list(THOUGHTS.finditer(spoken))
    if (marks and not marks[-1][1]) or not text.strip():
        return len(spoken)
    # a server that takes the thoughts out of the text lists their tokens all the same
    return max(spoken.rfind(text.strip()), marks[-1].end() if marks else 0)


def _word(token: Any) -> str | None:
    word = token.strip(AROUND).casefold() if isinstance(token, str) else ""
    return word if word in {"yes", "no"} else None


def _known(each: Any) -> bool:
    """Whether it is a token that says yes or no, with a probability."""
    if not isinstance(each, dict) or _word(each.get("token")) is None:
        return False
    value = each.get("logprob")
    return isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)
