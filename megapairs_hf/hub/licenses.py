"""The Hub's list of licenses, and the nearest one to what is none of them.

After https://huggingface.co/docs/hub/repositories-licenses. What surprises: the list grows, so an identifier that is
not on it is named and not refused; the Hub itself decides. A license of one's own is `other`, with a name and a link.
"""

from __future__ import annotations

import difflib
import re

LICENSES = frozenset(
    """
    apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0
    bigcode-openrail-m afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc
    cc0-1.0 cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0
    cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0
    cdla-sharing-1.0 cdla-permissive-1.0 cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1
    eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0 lgpl lgpl-2.1 lgpl-3.0 isc h-research intel-research lppl-1.3c ms-pl
    apple-ascl apple-amlr mpl-2.0 odc-by odbl openmdw-1.0 openmdw-1.1 openrail++ osl-3.0 postgresql ofl-1.1 ncsa
    unlicense zlib pddl lgpl-lr deepfloyd-if-license fair-noncommercial-research-license llama2 llama3 llama3.1
    llama3.2 llama3.3 llama4 grok2-community gemma unknown other
    """.split()
)
OTHER, UNKNOWN = "other", "unknown"
IDENTIFIER = re.compile(r"[a-z0-9][a-z0-9.+\-]*")
# a link to the text: a file of the repository, or a page
LINK = re.compile(r"LICENSE(\.md|\.txt)?|https?://\S+")
ADVICE = "--license other --license_name NAME --license_link LICENSE"
# what license texts are called beside their names
WORDS = re.compile(r"\b(the|licen[sc]e|version|only|or-later|international|deed)\b")
SPELLED = {
    "creative commons": "cc",
    "attribution": "by",
    "share[ -]?alike": "sa",
    "non[ -]?commercial": "nc",
    "no[ -]?derivatives": "nd",
    "zero": "0",
}


def nearest_license(text: str) -> str | None:
    """The identifier that somebody means by `Apache 2.0`, `CC BY-SA 4.0` or `gplv3`; None where none is near."""
    name = text.lower()
    for words, short in SPELLED.items():
        name = re.sub(words, short, name)
    name = re.sub(r"[\s_\-]+", "-", re.sub(r"(?<=[a-z])v(?=\d)|\bv(?=\d)", "-", WORDS.sub(" ", name))).strip("-")
    known = sorted(LICENSES - {OTHER, UNKNOWN})
    for each in (text.lower(), name):
        if each in known:
            return each
    # an identifier without its version means the latest; one with more words than the list's, the longest part of it
    longer = [each for each in known if re.fullmatch(rf"{re.escape(name)}-[0-9.]+", each)]
    shorter = sorted((each for each in known if name.startswith(f"{each}-")), key=len)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.7)
    best = longer[-1:] or near or shorter[-1:]
    return best[0] if best else None


def license_advice(text: str) -> str:
    """What to write in the place of something that is not on the list."""
    near = nearest_license(text)
    hint = f"did you mean {near}? " if near else ""
    return f"{hint}For a license that is not on it: {ADVICE}"
