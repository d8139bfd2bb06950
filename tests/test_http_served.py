"""What a server is given by default."""

from pefx.config import HttpConfig
from pefx.http.served import Speller
from tests.http_fakes import Letters


def test_by_default_only_this_machine_is_served() -> None:
    settings = HttpConfig()
    assert (settings.host, settings.keys) == ("127.0.0.1", None)


def test_a_tokenizer_is_known_by_what_it_does() -> None:
    assert isinstance(Letters(), Speller)
