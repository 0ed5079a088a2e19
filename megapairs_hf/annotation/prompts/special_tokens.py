"""Special tokens that a server left in a response, of any family of models; nothing a person wrote looks like them.

What surprises: what follows the end of a turn is another turn that the model made up, so it goes as well.
"""

from __future__ import annotations

import re

ROLE = re.compile(
    r"<\|(?:im_start|start|start_header_id|role_start)\|>\s*(?:assistant|model|ai\b|bot\b)(?:\s*<\|(?:end_header_id|role_end)\|>)?"
    r"|<start_of_turn>\s*(?:model|assistant)|<[|｜]\s*assistant\s*[|｜]>",
    re.IGNORECASE,
)
# the role alone, where the tokens around it were taken out
SPEAKER = re.compile(r"^\s*(?:(?:assistant|model|ai)\s*:\s*(?=\S)|assistant\s*\n)", re.IGNORECASE)
# the end of the response, or the beginning of somebody else's turn
END = re.compile(
    r"<[|｜](?:im_end|im_sep|eot_id|eot|eom_id|eom|end|return|call|eos|eod|stop|end_?of_?(?:text|turn|sentence|utterance|message)"
    r"|endoftext|endofturn|end_of_turn_token|end▁of▁(?:sentence|turn))[|｜]>"
    r"|<\|(?:im_start|start|start_header_id|role_start)\|>\s*(?:user|system|human|tool)\b|<start_of_turn>\s*user\b"
    r"|<[|｜]\s*(?:user|system|human|prompter|observation)\s*[|｜]>"
    r"|</s>|<(?:eos|eot|eod|end_of_turn|end_of_utterance|endoftext|end_of_text|turn\|)>|\[(?:EOS|/?INST)\]|\[e~\[",
    re.IGNORECASE,
)
OTHER = re.compile(
    r"<\|[^<>|\s]{1,40}\|>|<｜[^<>｜\s]{1,40}｜>|<s>|<(?:bos|pad|unk|mask|sep|cls|sop|eop|image|img|im_patch|video)>|<</?SYS>>"
    r"|<extra_id_\d+>|<unused\d+>|<0x[0-9A-F]{2}>|<start_of_(?:turn|image)>|<end_of_image>"
    r"|\[(?:PAD|UNK|CLS|SEP|MASK|BOS|gMASK)\]|\]~b\]",
    re.IGNORECASE,
)
LEADING = re.compile(rf"^(?:\s|{END.pattern}|{OTHER.pattern})+", re.IGNORECASE)
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u2028\u2029\ufeff\ufffe\uffff]")


def without_special_tokens(text: str) -> str:
    """The first turn of a response, without special tokens and control characters."""
    text = text.replace("\r\n", "\n").replace("<n>", "\n")
    text = SPEAKER.sub("", text)
    if "<" in text or "[" in text:
        text = LEADING.sub("", ROLE.sub(" ", text))
        match = END.search(text)
        text = OTHER.sub("", text[: match.start()] if match else text)
    return CONTROL.sub("", text.replace("▁", " ")).strip()
