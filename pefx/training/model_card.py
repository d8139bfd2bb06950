"""The README of an exported base: what it is, what it read, how long it took, how good it is."""

from textwrap import fill

from pefx.config import PretrainConfig, TrainConfig
from pefx.progress import clock
from pefx.training.loop import Outcome

CARD = """---
library_name: transformers
pipeline_tag: text-generation
tags: [{family}, mixture-of-experts, pefx]
---
# {name}

A small mixture-of-experts language model to train personal adapters on: {parameters:,} parameters, {layers} layers
({dense} dense, {sparse} with {experts} experts of which {chosen} read a token), hidden size {hidden}, context {context}
tokens, byte-level BPE with {vocabulary:,} entries. Weights are stored as {stored}.

**Held-out loss: {loss:.4f} nats per token.**

## Training
| | |
|---|---|
| text | `{train}`: {corpus:,} tokens |
| held out | `{heldout}`: {heldout_tokens:,} tokens of it, spread evenly |
| tokens seen | {seen:,.0f} ({passes:.1f} passes) |
| steps | {steps:,} of {batch:,} tokens, windows of {window} |
| optimizer | AdamW, rate {rate:g}, {warmup} steps of warm-up, cosine decay to {final:g} of it, weight decay {decay:g} |
| time | {time} |
| precision | {precision} |

{about}

## Held-out loss by step
| step | nats per token |
|---:|---:|
{curve}
"""


def model_card(config: TrainConfig, pretrain: PretrainConfig, outcome: Outcome, parameters: int, corpus: int) -> str:
    """Markdown with the front matter that model hubs read; `corpus` is the tokens of training text."""
    model, optimizer = pretrain.model, config.optimizer
    curve = [f"| {step:,} | {scores['base']:.4f} |" for step, scores in sorted(outcome.evaluations.items())]
    return CARD.format(
        name=config.name,
        about=fill(f"{pretrain.about} The model has no safety training.".strip(), 118),
        family=model.family,
        parameters=parameters,
        layers=model.layers,
        dense=len(model.dense_layers),
        sparse=model.layers - len(model.dense_layers),
        experts=model.experts,
        chosen=model.experts_per_token,
        hidden=model.hidden,
        context=model.context,
        vocabulary=model.vocab_size,
        stored=pretrain.stored_precision,
        loss=outcome.evaluations[config.steps]["base"],
        train=pretrain.train,
        corpus=corpus,
        heldout=pretrain.heldout,
        heldout_tokens=config.data.heldout_tokens,
        seen=outcome.tokens,
        passes=outcome.tokens / corpus,
        steps=config.steps,
        batch=pretrain.batch_tokens,
        window=config.data.sequence_length,
        rate=optimizer.learning_rate,
        warmup=optimizer.warmup_steps,
        final=optimizer.final_fraction,
        decay=optimizer.weight_decay,
        time=clock(outcome.seconds),
        precision=config.precision,
        curve="\n".join(curve),
    )
