from dataclasses import dataclass

import pytest
from pydantic import BaseModel, ConfigDict

from eventcore.redaction import scrub, scrub_mapping, scrub_text

R = "[REDACTED]"


@pytest.mark.parametrize(
    "key",
    [
        "api_key",
        "API-Key",
        "apikey",
        "apiKey",
        "Authorization",
        "x-api-key",
        "X-API-Key",
        "Cookie",
        "Set-Cookie",
        "password",
        "Passwd",
        "secret",
        "token",
        "client_secret",
        "client-secret",
        "access_token",
        "private_key",
        "Proxy-Authorization",
        "credit_card",
        "session_token",
        "aws_secret_access_key",
    ],
)
def test_values_of_secret_keys_are_redacted(key):
    """Values of keys that hold secrets are redacted, however the key is written."""
    assert scrub_mapping({key: "s3cret"}) == {key: R}


@pytest.mark.parametrize("key", ["accessToken", "clientSecret", "refreshToken", "privateKey", "xApiKey"])
def test_camel_case_keys_are_secret_too(key):
    """Keys in camel case hold the same secrets."""
    assert scrub_mapping({key: "s3cret"}) == {key: R}


@pytest.mark.parametrize(
    "key",
    [
        "author",
        "authors",
        "max_tokens",
        "tokens",
        "token_count",
        "prompt_tokens",
        "secretary",
        "passwordless",
        "cookies_enabled",
        "bearing",
        "key",
        "tokenizer",
        "maxTokens",
        "authorName",
    ],
)
def test_keys_are_compared_as_whole_words(key):
    """Keys are compared as whole words, never as substrings: ``author`` and ``max_tokens`` survive."""
    assert scrub_mapping({key: "Ada"}) == {key: "Ada"}


def test_nested_lists_and_mappings_are_reached():
    """Secrets in nested lists, tuples and mappings are reached; what surrounds them survives."""
    data = {
        "request": {"headers": [{"name": "x", "token": "abc"}, {"author": "Ada"}], "n": 3},
        "lines": ["fine", "Bearer abcdef123456", ("password=hunter2", 5)],
    }
    scrubbed = scrub_mapping(data)
    assert scrubbed["request"] == {"headers": [{"name": "x", "token": R}, {"author": "Ada"}], "n": 3}
    assert scrubbed["lines"][0] == "fine"
    assert "abcdef123456" not in str(scrubbed["lines"])
    assert "hunter2" not in str(scrubbed["lines"])
    assert scrubbed["lines"][2][1] == 5


class Login(BaseModel):
    model_config = ConfigDict(extra="allow", frozen=True)
    user: str
    password: str = "hunter2"


@dataclass(frozen=True, slots=True)
class Visitor:
    mail: str
    login: Login


@pytest.mark.parametrize("wrap", [lambda value: value, lambda value: [value], lambda value: {"deep": (value,)}])
def test_models_and_dataclasses_are_reached(wrap):
    """Secrets in pydantic models and dataclasses are reached, by text and by a field's name; originals are kept."""
    visitor = Visitor("ada@example.org", Login(user="ada", remark="sk-abcdefghijklmnopqrstuvwx", token="t0k3n"))
    value = wrap(visitor)
    scrubbed = scrub(value)
    text = str(scrubbed)
    for secret in ("ada@", "hunter2", "sk-abc", "t0k3n"):
        assert secret not in text
        assert secret in str(value)
    assert text.count("Visitor") == text.count("Login") == 1
    assert "user='ada'" in text


def test_records_without_secrets_are_the_same_objects():
    """What holds no secret is handed on as it is, models and dataclasses too."""
    value = [Visitor("-", Login(user="ada", password="")), Login]
    assert scrub(value) is value


def test_a_model_may_refer_to_itself():
    """A circle of models ends."""
    login = Login(user="ada", friends=[])
    login.friends.append(login)
    assert "hunter2" not in str(scrub(login))


def test_secrets_in_keys_are_replaced():
    """A key that is a secret is replaced; of two such keys both values are kept, and other keys stay."""
    data = {"ada@example.org": 1, "bob@example.org": 2, "[REDACTED_EMAIL]_2": 3, "n": 4}
    assert scrub({"by": data}) == {
        "by": {"[REDACTED_EMAIL]": 1, "[REDACTED_EMAIL]_3": 2, "[REDACTED_EMAIL]_2": 3, "n": 4}
    }


def test_the_original_is_left_alone():
    """Scrubbing copies: the caller's own mapping keeps its values."""
    inner = {"password": "hunter2"}
    data = {"inner": inner, "list": [inner]}
    scrub_mapping(data)
    assert data == {"inner": {"password": "hunter2"}, "list": [{"password": "hunter2"}]}


@pytest.mark.parametrize(
    "value", [{"sk-abcdefghijklmnopqrstuvwx"}, frozenset({"password=hunter2"}), b"password=hunter2"]
)
def test_sets_and_bytes_are_reached_too(value):
    """Secrets in sets and bytes do not slip through."""
    text = str(scrub_mapping({"value": value}))
    assert "abcdefghijklmnopqrstuvwx" not in text
    assert "hunter2" not in text


@pytest.mark.parametrize("value", [["a", "b"], {"a": "b"}, 12345, b"raw"])
def test_a_secret_key_hides_any_kind_of_value(value):
    """The value of a secret key is redacted whatever its type."""
    assert scrub_mapping({"secret": value}) == {"secret": R}


@pytest.mark.parametrize("value", [None, "", 0, [], {}])
def test_an_empty_secret_stays_visible(value):
    """That a secret is missing is worth seeing: an empty value is no secret."""
    assert scrub_mapping({"api_key": value}) == {"api_key": value}


def test_keys_that_are_no_text_are_fine():
    """Mappings with other keys than text are scrubbed as well."""
    assert scrub_mapping({1: "Bearer abcdefghij", None: "x"}) == {1: "[REDACTED_TOKEN]", None: "x"}


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("Authorization: Bearer abc.def-123456", "TOKEN"),
        ("authorization: basic dXNlcjpwYXNz", "TOKEN"),
        ("key sk-proj-abcdefghijklmnop1234 leaked", "API_KEY"),
        ("AKIAIOSFODNN7EXAMPLE", "AWS_KEY"),
        ("ghp_" + "a" * 36, "API_KEY"),
        ("password: hunter2", "SECRET"),
        ("https://x.example/?api_key=abcdef", "SECRET"),
        ("postgres://shop:hunter2@db.internal:5432/shop", "SECRET"),
        ("redis://:hunter2@cache", "SECRET"),
        ("-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----", "PRIVATE_KEY"),
        ("-----BEGIN PRIVATE KEY-----\nMIIE, cut off", "PRIVATE_KEY"),
        ("write to ada@example.org", "EMAIL"),
    ],
)
def test_patterns_of_secrets_in_text_are_replaced(text, kind):
    """Secrets in free text are replaced by what kind they were."""
    scrubbed = scrub_text(text)
    assert f"[REDACTED_{kind}]" in scrubbed
    for secret in ("abc.def-123456", "dXNlcjpwYXNz", "sk-proj", "AKIA", "ghp_", "hunter2", "abcdef", "MIIE", "ada@"):
        assert secret not in scrubbed


@pytest.mark.parametrize("text", ['{"password": "hunter2"}', "{'api_key': 'hunter2'}", '"secret" : "hunter2"'])
def test_secrets_in_json_text_are_replaced(text):
    """A body that is JSON text hides its secrets as a mapping does."""
    assert "hunter2" not in scrub_text(text)


@pytest.mark.parametrize(
    "card", ["4111 1111 1111 1111", "4111-1111-1111-1111", "4111111111111111", "378282246310005", "6011111111111117"]
)
def test_cards_are_found_by_their_checksum(card):
    """Card numbers are found by their checksum, with or without separators."""
    assert scrub_text(f"paid with {card} today") == "paid with [REDACTED_CARD] today"


@pytest.mark.parametrize("number", ["4111 1111 1111 1112", "1700000000123457", "123456789012", "12345678901234567890"])
def test_other_long_numbers_survive(number):
    """A long number whose checksum is wrong, or that is too short or long for a card, is no card."""
    assert scrub_text(f"request {number} done") == f"request {number} done"


@pytest.mark.parametrize("text", ["the author used max_tokens=100", "tokens: 5", "a basic idea", "no secrets here", ""])
def test_harmless_text_survives(text):
    """Text without secrets comes back as it was."""
    assert scrub_text(text) == text
