"""Licenses of the Hub's list, the nearest to others, and `other` with its name and link."""

import pytest

from megapairs_hf.core.errors import ConfigError
from megapairs_hf.hub.config import PushConfig
from megapairs_hf.hub.licenses import IDENTIFIER, LICENSES, license_advice, nearest_license

MEANT = [
    ("apache2", "apache-2.0"),
    ("apache", "apache-2.0"),
    ("Apache 2.0", "apache-2.0"),
    ("Apache License, Version 2.0", "apache-2.0"),
    ("MIT License", "mit"),
    ("CC BY 4.0", "cc-by-4.0"),
    ("cc-by", "cc-by-4.0"),
    ("cc_by_sa_4.0", "cc-by-sa-4.0"),
    ("cc-by-nc-sa", "cc-by-nc-sa-4.0"),
    ("Creative Commons Attribution-NonCommercial 4.0 International", "cc-by-nc-4.0"),
    ("cc0", "cc0-1.0"),
    ("gplv3", "gpl-3.0"),
    ("GPL-3.0-only", "gpl-3.0"),
    ("agpl-v3", "agpl-3.0"),
    ("BSD 3-Clause", "bsd-3-clause"),
    ("ODC-BY-1.0", "odc-by"),
    ("llama-3.1", "llama3.1"),
    ("proprietary", None),
    ("my-license", None),
]


@pytest.mark.parametrize(("text", "meant"), MEANT)
def test_the_nearest_identifier_is_named(text, meant):
    assert nearest_license(text) == meant
    assert ("did you mean" in license_advice(text)) is (meant is not None)
    assert "--license other --license_name NAME" in license_advice(text)


@pytest.mark.parametrize("text", sorted(LICENSES))
def test_every_identifier_of_the_list_is_taken(text):
    assert IDENTIFIER.fullmatch(text) and PushConfig("org/a", license=text).license == text
    if text not in {"other", "unknown"}:
        assert nearest_license(text) == nearest_license(text.upper()) == text


@pytest.mark.parametrize("text", [text for text, _ in MEANT if IDENTIFIER.fullmatch(text) is None])
def test_what_can_be_no_identifier_is_refused_with_the_nearest(text):
    with pytest.raises(ConfigError, match="an identifier of the Hub's list; did you mean "):
        PushConfig("org/a", license=text)


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"license": "mit", "license_name": "mine"}, "license_name"),
        ({"license_link": "LICENSE"}, "license_link"),
        ({"license": "other", "license_link": "the file"}, "license_link"),
        ({"license": "other", "license_link": "javascript:alert(1)"}, "license_link"),
        ({"license": "other", "license_name": "two\nlines"}, "license_name"),
        ({"license": "other", "license_name": " "}, "license_name"),
    ],
)
def test_name_and_link_belong_to_other(settings, field):
    with pytest.raises(ConfigError, match=f"`{field}` is"):
        PushConfig("org/a", **settings)
