"""Words that the rules must know: synonyms, collective nouns, clothes, prepositions of place, and forms of verbs.

Small on purpose: a word that stands in no list is taken as it is. What surprises: `lay` counts as `lie`, as in most
captions of photographs.
"""

from __future__ import annotations

import re

SYNONYMS = {
    word: group.split()[0]
    for group in (
        "man guy gentleman male men guys",
        "woman lady female women ladies",
        "child kid children kids",
        "person people adult individual human persons friend friends",
        "baby infant",
        "father dad",
        "mother mom mum",
        "bicycle bike",
        "motorcycle motorbike",
        "couch sofa",
        "phone cellphone telephone smartphone",
        "airplane plane aircraft aeroplane",
        "television tv",
        "street road",
        "ocean sea",
        "donut doughnut",
        "car automobile",
        "store shop",
        "rabbit bunny",
        "jacket coat",
        "lie lay",
        "talk speak chat",
        "jump leap",
        "walk stroll",
        "sit seat",
        "smile grin",
        # what the small model of spaCy takes for the lemma of "riding"
        "ride rid",
    )
    for word in group.split()
}
PHOTOS = frozenset("photo photograph picture image shot view close-up closeup painting drawing sketch".split())
COLLECTIVES = frozenset(
    "group crowd herd flock bunch couple pair row line pile stack team set lot number pack band crew class"
    " dozen".split()
)
CONTAINERS = frozenset("plate bowl cup glass vase basket box bottle bag pot jar tray mug bucket dish pan".split())
COLORS = frozenset("white black red blue green yellow pink purple orange brown gray grey".split())
CLOTHES = COLORS | frozenset(
    "dress shirt t-shirt tshirt jacket coat hat cap helmet suit uniform swimsuit bikini wetsuit overalls jeans pants"
    " shorts skirt sweater hoodie vest costume outfit gear tuxedo gown sari saris kimono raincoat scarf glasses"
    " sunglasses headphones tie boots shoes clothing clothes attire top tank apron robe onesie pajamas jersey"
    " trunks".split()
)
BODY = frozenset(
    "hand mouth head arm face back shoulder lap leg foot neck ear eye finger knee teeth chest nose".split()
)
HIM = frozenset(
    "man boy father son groom businessman grandfather fisherman waiter policeman fireman cowboy brother king".split()
)
HER = frozenset("woman girl mother daughter bride businesswoman grandmother waitress sister lady queen".split())
# a preposition of place, and what it counts as when two places are compared
PLACES = {
    **dict.fromkeys("in inside within".split(), "in"),
    **dict.fromkeys("on onto atop upon".split(), "on"),
    **dict.fromkeys("by beside near alongside".split(), "by"),
    **dict.fromkeys("under underneath beneath below".split(), "under"),
    **dict.fromkeys("behind above over at outside around between among against amid during".split(), ""),
}
PLACES |= {word: word for word, kind in PLACES.items() if not kind}
PREPOSITIONS = {*PLACES, *"with without into through down up along across off to from toward towards for".split()}
# with these verbs a phrase with `at` tells of an aim
AIMED = frozenset("look point laugh smile stare gaze wave swing throw aim shout yell bark work arrive".split())
# with these participles a phrase with `in` tells of no place
FILLED = frozenset("cover dress wrap drench soak bathe fill".split())
GENERIC_VERBS = frozenset("be sit stand have hold look walk wear go get play take make lie do use pose".split())
GENERIC_NOUNS = frozenset(
    "side top front back background foreground photo day night time air way middle one other edge end part"
    " camera color group bunch row pair lot".split()
)
NO_PREDICATE = frozenset(
    "other same main various several many more few different such certain own another assorted numerous young"
    " elderly old older little female male double single public multiple two three".split()
)
NUMBERS = "one two three four five six seven eight nine ten eleven twelve".split()
# behind an object and "and" these are verbs: "plays the guitar and sings"
INTRANSITIVE = frozenset(
    "sing smile laugh dance wave talk jump sleep run walk pose look swim eat wait read sit stand fly fall cheer clap"
    " cry scream point stare rest relax".split()
)
# things that are worn, whose names a parser takes for verbs behind another noun: "adult pants"
WORN = frozenset(
    "boots boxers briefs flats glasses goggles heels jeans leggings overalls pants sandals shoes shorts slacks"
    " slippers sneakers socks tights trousers trunks".split()
)
# past forms that tell how a thing is, without an auxiliary: "a bird perched on a branch"
STATES = frozenset(
    "park perch seat stack cover fill dress surround pile line display top decorate stop mount hang light crowd gather"
    " tie tether dock locate position situate arrange place attach strap wrap pack load paint equip set crouch huddle"
    " cluster group curl scatter prepare serve plate slice chop lean pose bundle".split()
)
MASS = frozenset("food water snow ice grass traffic fruit furniture luggage sand smoke fog art graffiti".split())
TIE = frozenset("lie die tie untie vie belie".split())
STRESSED_END = frozenset(
    "begin forget admit commit permit submit refer prefer transfer occur control patrol equip upset regret unzip"
    " babysit outrun kidnap program backflip handstep worship unwrap unpin reset".split()
)
SHORT_VOWEL = re.compile(r"(?:[^aeiou]|qu)*[aeiouy][bdgklmnprtvz]")
STRANGE_S = {"lies": "lie", "dies": "die", "ties": "tie", "does": "do", "goes": "go", "has": "have", "is": "be"}
# an English word that begins with a vowel letter and a consonant, and the other way round
AN, A = (
    re.compile(r"(?i)(?:[aeio]|u(?!n[ia]|s[ae]|k|ti)|hour|honest|heir|8|11\b|18\b)"),
    re.compile(r"(?i)(?:eu|one\b|once)"),
)


def canonical(word: str) -> str:
    """A word, or the one that stands for its synonyms."""
    low = word.lower()
    return SYNONYMS.get(low, low)


def ing_form(verb: str) -> str:
    """The -ing form of a verb: `run` → `running`, `lie` → `lying`."""
    low = verb.lower()
    if low in TIE:
        return f"{verb[:-2]}ying"
    if low.endswith("ic"):
        return f"{verb}king"
    if low.endswith("e") and not low.endswith(("ee", "oe", "ye")) and low not in {"be", "singe", "tinge"}:
        return f"{verb[:-1]}ing"
    if SHORT_VOWEL.fullmatch(low) or low in STRESSED_END:
        return f"{verb}{verb[-1]}ing"
    return f"{verb}ing"


def base_form(verb: str) -> str:
    """The base of a verb in the third person: `flies` → `fly`."""
    low = verb.lower()
    if low in STRANGE_S:
        return STRANGE_S[low]
    if low.endswith("ies"):
        return f"{low[:-3]}y"
    if re.search(r"(?:[sc]h|ss|x|zz|o)es$", low):
        return low[:-2]
    return low.removesuffix("s")


def with_article(phrase: str) -> str:
    """A singular phrase with `a` or `an` before it."""
    return f"{'an' if AN.match(phrase) and not A.match(phrase) else 'a'} {phrase}"
