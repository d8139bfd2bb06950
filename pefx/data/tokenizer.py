"""Text to token ids and back, and chat messages to text, from the files of a Hugging Face directory."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import jinja2
import tokenizers
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from pefx.errors import PefxError

Message = Mapping[str, str]


class Tokenizer:
    """A byte-level BPE with its end-of-text token and chat template.

    Reads `tokenizer.json`, and beside it `tokenizer_config.json` and, where there is one, `chat_template.jinja`.
    Text that spells a special token becomes that token, as in transformers. `digest` names everything that decides
    which ids a text or a chat gets.
    """

    def __init__(self, backend: tokenizers.Tokenizer, eos: int, chat_template: str | None, path: str):
        self.eos = eos
        self.vocab_size = backend.get_vocab_size(with_added_tokens=True)
        self.path = path
        self._backend = backend
        self._template_text = chat_template
        self._template: jinja2.Template | None = None
        content = json.dumps([backend.to_str(), eos, chat_template])
        self.digest = "sha256:" + hashlib.sha256(content.encode()).hexdigest()

    @classmethod
    def load(cls, directory_or_file: str | Path) -> "Tokenizer":
        """Reads a directory that holds `tokenizer.json`, or that file; raises PefxError naming what is missing."""
        path = Path(directory_or_file)
        path = path / "tokenizer.json" if path.is_dir() else path
        if not path.is_file():
            raise PefxError(f"{path}: no such tokenizer file")
        try:
            backend = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # noqa: BLE001 - the library raises bare Exception for every kind of bad file
            raise PefxError(f"{path}: not a tokenizer: {error}") from None
        backend.no_padding()
        backend.no_truncation()
        config_path = path.with_name("tokenizer_config.json")
        config = _read_config(config_path)
        token = config.get("eos_token")
        token = token.get("content") if isinstance(token, dict) else token
        eos = backend.token_to_id(token) if isinstance(token, str) else None
        if eos is None:
            raise PefxError(f"{config_path}: field 'eos_token' is {token!r}, which is no token of {path.name}")
        template = path.with_name("chat_template.jinja")
        text = template.read_text(encoding="utf-8") if template.is_file() else config.get("chat_template")
        if text is not None and not isinstance(text, str):
            raise PefxError(f"{config_path}: field 'chat_template' must be a string")
        return cls(backend, eos, text, str(path))

    def encode(self, text: str) -> list[int]:
        """Token ids of a text; nothing is added before or after."""
        return self._backend.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of each text, on all cores."""
        return [encoding.ids for encoding in self._backend.encode_batch_fast(list(texts), add_special_tokens=False)]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, special tokens included; bytes that are no UTF-8 become U+FFFD."""
        return self._backend.decode(list(ids), skip_special_tokens=False)

    def to_json(self) -> str:
        """The text of its `tokenizer.json`."""
        return self._backend.to_str()

    def token_id(self, token: str) -> int | None:
        """The id of a token by its spelling, or None."""
        return self._backend.token_to_id(token)

    def chat(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> list[int]:
        """Token ids of a conversation as the chat template writes it."""
        return self.encode(self.render(messages, add_generation_prompt))

    def render(self, messages: Sequence[Message], add_generation_prompt: bool) -> str:
        """The text of a conversation; raises PefxError when there is no template or it refuses the messages."""
        if self._template_text is None:
            raise PefxError(f"{self.path}: this tokenizer has no chat_template; give prompt and completion instead")
        if self._template is None:
            self._template = _compile(self._template_text, self.path)
        try:
            return self._template.render(
                messages=[dict(message) for message in messages],
                add_generation_prompt=add_generation_prompt,
                eos_token=self._backend.id_to_token(self.eos),
                bos_token="",
            )
        except jinja2.TemplateError as error:
            raise PefxError(f"{self.path}: the chat template refuses the messages: {error}") from None

    def chat_segments(self, messages: Sequence[Message]) -> list[tuple[str, bool]]:
        """A conversation cut into (text, learned) where learned text is what the assistant itself would have written.

        That is each assistant turn with its end marker, starting where generation would start. Raises PefxError when
        the template writes a turn differently once others follow, so that there is no such place.
        """
        segments: list[tuple[str, bool]] = []
        done = ""
        for index, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before = self.render(messages[:index], add_generation_prompt=True)
            after = self.render(messages[: index + 1], add_generation_prompt=False)
            if not (before.startswith(done) and after.startswith(before)):
                raise PefxError(f"{self.path}: the chat template rewrites turns that came before message {index + 1}")
            turn = after[len(before) :]
            learned = turn.rstrip()
            segments += [(before[len(done) :], False), (learned, True)]
            done = before + learned
        whole = self.render(messages, add_generation_prompt=False)
        if not whole.startswith(done):
            raise PefxError(f"{self.path}: the chat template rewrites earlier turns at the end of a conversation")
        segments.append((whole[len(done) :], False))
        return [(text, learned) for text, learned in segments if text]


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise PefxError(f"{path}: no such file; it names the end-of-text token and the chat template")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise PefxError(f"{path}: broken JSON: {error}") from None
    if not isinstance(config, dict):
        raise PefxError(f"{path}: expected a JSON object")
    return config


def _compile(template: str, path: str) -> jinja2.Template:
    """The template in a sandbox: a file from elsewhere must not run code here.

    It gets what transformers gives it, but for `strftime_now`: the same data must be the same tokens tomorrow.
    """
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    try:
        return environment.from_string(template)
    except jinja2.TemplateError as error:
        raise PefxError(f"{path}: broken chat template: {error}") from None


def _to_json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
