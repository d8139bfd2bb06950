"""Peer worker: transformers and PEFT on PyTorch, CPU. `python torch_worker.py MODEL_DIR`; commands in protocol.py.

PEFT has no slots: as many adapters are loaded as the case has. They train one after another, each on its own sequences,
and generate together from one batch through `adapter_names`. LoRA sits on the attention projections only, since the
experts of transformers 5 are fused parameters and no linear modules.
"""
# pyright: reportMissingImports=false

import sys
import time
from collections.abc import Callable
from pathlib import Path

from case import Case, vocab_size
from protocol import serve
from traffic import Asked, Traffic, longest_first  # isort: split

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel

THREADS = 2
# Tokens/s on two cores, medians of five alternating repeats, for sdpa and eager attention:
#                                      grouped_mm   eager experts
#   train, 4 adapters, 8 sequences    1594   1590   1367   1359
#   generate, 4 adapters, 8 sequences  338    265    284    261
#   generate, base, 8 sequences        529    497    376    330
# batched_mm copies the experts of every token: 113 and 106 in training, three repeats of an earlier run.
ATTENTION = "sdpa"
EXPERTS = "grouped_mm"
RATE = 1e-4


def load_base(model_dir: Path) -> PreTrainedModel:
    """The base with the implementations that were fastest."""
    base = AutoModelForCausalLM.from_pretrained(
        model_dir, dtype=torch.float32, attn_implementation=ATTENTION, experts_implementation=EXPERTS
    )
    return base.eval()


def load_adapters(base: PreTrainedModel, case: Case | Traffic) -> tuple[PeftModel, list[str]]:
    """The base with `case.adapters` fresh adapters, and their names."""
    projections = ["q_proj", "k_proj", "v_proj", "o_proj"]
    config = LoraConfig(r=case.rank, lora_alpha=case.rank, target_modules=projections, task_type="CAUSAL_LM")
    names = [f"adapter{i}" for i in range(case.adapters)]
    model = get_peft_model(base, config, adapter_name=names[0])
    for name in names[1:]:
        model.add_adapter(name, config)
    return model, names


def training(model_dir: Path, case: Case) -> Callable[[], float]:
    """One optimizer step for each adapter on its own sequences."""
    model, names = load_adapters(load_base(model_dir), case)
    model.train()
    words = torch.tensor(case.draw(vocab_size(model_dir)))
    shares = [words[i :: case.adapters] for i in range(case.adapters)]
    optimizers = []
    for name in names:
        model.set_adapter(name)
        own = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizers.append(torch.optim.AdamW(own, lr=RATE, fused=True))

    def run() -> float:
        start = time.perf_counter()
        for name, optimizer, share in zip(names, optimizers, shares):
            model.set_adapter(name)
            logits = model(input_ids=share[:, :-1], use_cache=False).logits
            cross_entropy(logits.flatten(0, 1), share[:, 1:].flatten()).backward()
            optimizer.step()
            optimizer.zero_grad()
        return time.perf_counter() - start

    return run


def generation(model_dir: Path, case: Case) -> Callable[[], float]:
    """Greedy continuation of all prompts in one batch, sequence i with adapter i % adapters."""
    model: PreTrainedModel | PeftModel = load_base(model_dir)
    extra = {}
    if case.adapters:
        model, names = load_adapters(model, case)
        model.eval()
        extra["adapter_names"] = [names[i % case.adapters] for i in range(case.sequences)]
    prompts = torch.tensor(case.draw(vocab_size(model_dir)))
    # Without an end token nothing stops early.
    config = GenerationConfig(
        max_new_tokens=case.new, do_sample=False, use_cache=True, eos_token_id=None, pad_token_id=0
    )

    @torch.inference_mode()
    def run() -> float:
        start = time.perf_counter()
        out = model.generate(
            input_ids=prompts, attention_mask=torch.ones_like(prompts), generation_config=config, **extra
        )
        seconds = time.perf_counter() - start
        if out.shape != (case.sequences, case.prompt + case.new):
            raise RuntimeError(f"generated a batch of shape {tuple(out.shape)}")
        return seconds

    return run


def serving(model_dir: Path, traffic: Traffic) -> Callable[[], float]:
    """Greedy answers to all requests, in padded batches whose longest answer ends them.

    Way "grouped": the requests of one adapter after those of another. "mixed": batches of `batch` requests with answers
    of about one length, each row with its adapter, which is what `adapter_names` is for.
    """
    model, names = load_adapters(load_base(model_dir), traffic)
    model.eval()
    asked = longest_first(traffic.draw(vocab_size(model_dir)))
    batches = [asked[i : i + traffic.batch] for i in range(0, len(asked), traffic.batch)]
    if traffic.way == "grouped":
        groups = [[one for one in asked if one.adapter == index] for index in range(traffic.adapters)]
        batches = [group[i : i + traffic.batch] for group in groups for i in range(0, len(group), traffic.batch)]

    @torch.inference_mode()
    def run() -> float:
        start = time.perf_counter()
        for batch in batches:
            extra = {}
            if traffic.way == "grouped":
                model.set_adapter(names[batch[0].adapter])
            else:
                extra["adapter_names"] = [names[one.adapter] for one in batch]
            answer(model, batch, extra)
        return time.perf_counter() - start

    return run


def answer(model: PeftModel, batch: list[Asked], extra: dict[str, list[str]]) -> list[list[int]]:
    """New tokens of each request of a batch: prompts padded on the left, what is over an answer's length cut off."""
    width, new = max(len(one.prompt) for one in batch), max(one.new for one in batch)
    prompts = torch.tensor([[0] * (width - len(one.prompt)) + one.prompt for one in batch])
    mask = torch.tensor([[0] * (width - len(one.prompt)) + [1] * len(one.prompt) for one in batch])
    config = GenerationConfig(max_new_tokens=new, do_sample=False, use_cache=True, eos_token_id=None, pad_token_id=0)
    out = model.generate(input_ids=prompts, attention_mask=mask, generation_config=config, **extra)
    if out.shape != (len(batch), width + new):
        raise RuntimeError(f"generated a batch of shape {tuple(out.shape)}")
    return [row[width : width + one.new].tolist() for row, one in zip(out, batch)]


def main() -> None:
    """Serves the commands on standard input."""
    model_dir = Path(sys.argv[1])
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    kinds = {"train": training, "generate": generation, "serve": serving}
    serve(lambda case: kinds[case.kind](model_dir, case))


if __name__ == "__main__":
    main()
