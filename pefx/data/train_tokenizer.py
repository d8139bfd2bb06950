"""Trains the byte-level BPE tokenizer of the shipped base and writes it in Hugging Face layout.

`python -m pefx.data.train_tokenizer --corpus DIR/base_train.jsonl --out assets/base` writes `tokenizer.json` and
`tokenizer_config.json` (ChatML template) and prints bytes per token.
"""

import json
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from pefx.data.jsonl import read_texts
from pefx.errors import PefxError
from pefx.program import run

END_OF_TEXT = "<|endoftext|>"
TURN_START = "<|im_start|>"
TURN_END = "<|im_end|>"
SPECIAL_TOKENS = (END_OF_TEXT, TURN_START, TURN_END)

# The Qwen form, with single digits, and with a line break joined to the indentation that follows it: code then
# costs one token for "newline and eight spaces" instead of two.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+"
    r"|\s*[\r\n]+(?: +(?= ))?|\s+(?!\S)|\s+"
)

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def train(texts: Iterator[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE over `texts` with `vocab_size` entries, special tokens first (end of text is id 0)."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def tokenizer_config(context: int) -> dict[str, object]:
    """What transformers' AutoTokenizer reads beside `tokenizer.json`."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": None,
        "eos_token": END_OF_TEXT,
        "pad_token": END_OF_TEXT,
        "unk_token": None,
        "additional_special_tokens": [TURN_START, TURN_END],
        "add_bos_token": False,
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": context,
        "chat_template": CHAT_TEMPLATE,
    }


def main(corpus: Path, out: Path, vocab_size: int = 4096, context: int = 1024) -> None:
    """Trains on CORPUS and writes both files under OUT.

    Args:
        corpus: JSONL with `text` on every line.
        out: folder to write to.
        vocab_size: entries of the vocabulary, special tokens included.
        context: longest sequence of the model, in tokens (a note for transformers).
    """
    if not corpus.is_file():
        raise PefxError(f"{corpus}: no such file; make it with python -m pefx.data.stdlib_text --out {corpus.parent}")
    tokenizer = train(read_texts(corpus), vocab_size)
    if tokenizer.get_vocab_size() != vocab_size:
        raise PefxError(f"{corpus}: too little text for {vocab_size} entries (got {tokenizer.get_vocab_size()})")
    out.mkdir(parents=True, exist_ok=True)
    (out / "tokenizer.json").write_text(tokenizer.to_str(pretty=False) + "\n", encoding="utf-8")
    config = json.dumps(tokenizer_config(context), indent=2, ensure_ascii=False)
    (out / "tokenizer_config.json").write_text(config + "\n", encoding="utf-8")
    heldout = corpus.with_name(corpus.name.replace("train", "heldout"))
    for path in sorted({corpus, heldout} & set(corpus.parent.iterdir())):
        texts = list(read_texts(path))
        tokens = sum(len(encoding) for encoding in tokenizer.encode_batch_fast(texts))
        size = sum(len(text.encode()) for text in texts)
        print(f"{path}: {size:,} bytes, {tokens:,} tokens, {size / tokens:.3f} bytes per token")


if __name__ == "__main__":
    run(main)
