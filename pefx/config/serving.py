"""Runs of `serve.py`, and plans for devices that are not there; standard library only."""

from dataclasses import dataclass, field

from pefx.config.shapes import AdapterSpec, ExpertForm, MeshConfig, Precision, Remat, Weights


@dataclass(frozen=True)
class PlanConfig:
    """What `pefx plan` compiles for TPUs that are not there: a base by the name of its preset, or a folder.

    Each shard of rows has `slots` adapters; trains `users` of them in a step, `tokens_per_user` tokens each; and serves
    `sequences` of up to `context` tokens, of whose prompts a step takes in `step_tokens`. `topology` is a kind of TPU
    and a shape, as in `v5p:4x4x8`. Beside adapters of LoRA as `adapter` there is room for those that are as one of
    `others`.
    """

    name: str
    base: str
    topology: str
    mesh: MeshConfig
    adapter: AdapterSpec = field(default_factory=lambda: AdapterSpec(rank=16, alpha=32.0))
    slots: int = 1
    users: int = 1
    tokens_per_user: int = 1024
    sequences: int = 8
    step_tokens: int = 512
    context: int = 4096
    page_size: int = 64
    precision: Precision = "bfloat16"
    base_weights: Weights = "plain"
    remat: Remat = "full"
    others: tuple[AdapterSpec, ...] = ()


@dataclass(frozen=True)
class HttpConfig:
    """A server: where, for whom, and within which bounds. Times are seconds.

    `keys` is a file that `pefx keys` writes; without one everybody on this machine may do everything, and nobody else
    anything. `queue` answers may be in flight. `tracked` policies keep the revision that they resolve to; every `poll`
    the catalog is asked for newer ones. One in `check_every` answers is computed again, as a prompt, and compared in
    bits (0: none). With `warm` the server compiles its steps before it takes requests.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    keys: str | None = None
    queue: int = 1024
    timeout: float = 600.0
    drain: float = 30.0
    poll: float = 5.0
    catalog_timeout: float = 5.0
    tracked: int = 10_000
    body_bytes: int = 4 << 20
    buffer: int = 4096
    check_every: int = 100
    warm: bool = True


@dataclass(frozen=True)
class ServeConfig:
    """`serve.py`: inference over mixed adapters, of a file or by HTTP. `catalog=None` serves the base alone.

    `slots` adapters are resident at once, `sequences` run at once, a step takes in `step_tokens` tokens of prompts,
    `pages` of `page_size` tokens hold keys and values (0: enough for `sequences` full contexts).
    The bank has room for adapters of LoRA up to `max_rank` on any of `targets`, their experts in `expert_form`, and for
    those of other methods that are like one of `others`, at its targets or some of them. Beside it `host_cache_mb` MiB
    of host memory hold adapters that were read, or are read ahead of their requests.
    With `prefix_cache` pages stay when their request is over, for others of the same adapter that begin alike.
    """

    name: str
    base: str
    catalog: str | None = None
    slots: int = 16
    host_cache_mb: int = 1024
    sequences: int = 32
    step_tokens: int = 256
    pages: int = 0
    page_size: int = 32
    prefix_cache: bool = True
    max_rank: int = 16
    targets: tuple[str, ...] = AdapterSpec.targets
    expert_form: ExpertForm = "per_expert"
    others: tuple[AdapterSpec, ...] = ()
    mesh: MeshConfig = field(default_factory=MeshConfig)
    precision: Precision = "float32"
    base_weights: Weights = "plain"
    seed: int = 0
    http: HttpConfig = field(default_factory=HttpConfig)
