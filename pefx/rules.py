"""What the values of a config must satisfy, beyond their types: ranges, multiples, names that exist."""

from dataclasses import replace

from pefx.adapters.methods.table import MEMORY_RANKS, METHODS
from pefx.adapters.sites import MATRICES, SITES
from pefx.checks import Broken, holds, not_negative, positive, texts
from pefx.config import (
    AdapterSpec,
    CheckpointConfig,
    DataConfig,
    HalvingConfig,
    HttpConfig,
    MeshConfig,
    ModelConfig,
    OptimizerConfig,
    PlanConfig,
    PolicyLossConfig,
    PretrainConfig,
    RolloutConfig,
    ServeConfig,
    SweepConfig,
    TrainConfig,
    UserConfig,
)
from pefx.errors import PefxError
from pefx.losses.rows import LOSSES
from pefx.rl.corrections import correction
from pefx.rl.tasks.table import task_rules
from pefx.sweeping.cells import cells, population


def broken_rules(config: TrainConfig | ServeConfig | PlanConfig | SweepConfig) -> Broken:
    """Yields every rule that `config` breaks, field by field; the types of its fields are taken as checked."""
    if isinstance(config, PlanConfig):
        yield from plan_rules(config)
    elif isinstance(config, ServeConfig):
        yield from serve_rules(config)
    elif isinstance(config, SweepConfig):
        yield from sweep_rules(config)
    else:
        yield from train_rules(config)


def sweep_rules(config: SweepConfig) -> Broken:
    yield from texts(config, "", "name")
    yield from positive(config, "", "seeds")
    for name in ("adapters", "learning_rates"):
        if not getattr(config, name):
            yield name, "is empty; a sweep has a cell for each adapter with each learning rate"
    for index, adapter in enumerate(config.adapters):
        yield from adapter_rules(adapter, f"adapters.{index}.")
    for rank in config.ranks:
        if rank < 1:
            yield "ranks", f"must be 1 or more, got {rank}"
    if config.run.halving is not None:
        yield "run.halving", "is of the sweep; give its 'rungs' and 'keep'"
    if len(config.run.users) != 1:
        yield "run.users", f"must be one user, whose data all cells learn from, got {len(config.run.users)}"
    if len(config.run.users) != 1 or any(rank < 1 for rank in (*config.ranks, *(a.rank for a in config.adapters))):
        return
    sized = {replace(adapter, alpha=1.0) for adapter in config.adapters}
    if len({replace(adapter, rank=1) for adapter in sized}) < len(sized):
        yield "adapters", "differ in rank only; give one of them, and its 'ranks'"
    try:
        names = [cell.name for cell in cells(config)]
    except PefxError as error:
        yield "scaling", str(error)
        return
    for name in dict.fromkeys(names):
        if names.count(name) > 1:
            yield "adapters", f"{names.count(name)} cells are called {name}; adapters must differ in what names say"
    if names:
        whole = train_rules(population(config))
        yield from {f"run.{field}".removeprefix("run.halving."): told for field, told in whole}.items()


def halving_rules(config: TrainConfig, halving: HalvingConfig) -> Broken:
    shortest = min((config.steps if user.steps is None else user.steps for user in config.users), default=config.steps)
    for before, rung in zip((0, *halving.rungs), halving.rungs, strict=False):
        if not before < rung < shortest:
            yield "halving.rungs", f"must grow from above 0 to below steps ({shortest}), got {halving.rungs}"
            break
    yield from holds(halving, "halving.", lambda x: 0 < x < 1, "must be above 0 and below 1", "keep")
    yield from positive(halving, "halving.", "seeds")
    if halving.seeds > 0 and len(config.users) % halving.seeds:
        yield "halving.seeds", f"must divide the users ({len(config.users)}) into cells, got {halving.seeds}"
    for user in config.users:
        rollout = user.rollout or config.rollout
        if user.heldout is None if user.task is None else not rollout.heldout:
            yield "halving.rungs", f"need something held out to decide by; '{user.name}' has nothing"
            break


def plan_rules(config: PlanConfig) -> Broken:
    yield from texts(config, "", "name", "base", "topology")
    sizes = ("slots", "users", "tokens_per_user", "sequences", "step_tokens", "context", "page_size")
    yield from positive(config, "", *sizes)
    yield from mesh_rules(config.mesh)
    yield from adapter_rules(config.adapter, "adapter.")
    yield from others_rules(config.others, config.adapter.targets)
    if config.users > config.slots:
        yield "users", f"must be at most slots ({config.slots}), got {config.users}"
    for name in ("tokens_per_user", "context"):
        if getattr(config, name) % config.page_size:
            yield name, f"must be a multiple of page_size ({config.page_size}), got {getattr(config, name)}"


def serve_rules(config: ServeConfig) -> Broken:
    yield from texts(config, "", "name", "base")
    yield from positive(config, "", "slots", "host_cache_mb", "sequences", "step_tokens", "page_size", "max_rank")
    yield from not_negative(config, "", "pages", "seed")
    yield from mesh_rules(config.mesh)
    yield from http_rules(config.http)
    yield from target_rules(config.targets, "")
    yield from others_rules(config.others, config.targets)
    if extra := [site for site in config.targets if site in SITES and site not in MATRICES]:
        yield "targets", f"{extra[0]!r} is no matrix that LoRA could adapt; name who has a place there in others"
    if config.catalog == "":
        yield "catalog", "is empty; name a folder, or None to serve the base alone"


def others_rules(others: tuple[AdapterSpec, ...], targets: tuple[str, ...]) -> Broken:
    for index, other in enumerate(others):
        yield from adapter_rules(other, f"others.{index}.")
        if extra := [site for site in other.targets if site in MATRICES and site not in targets]:
            yield f"others.{index}.targets", f"has {extra[0]!r}, which targets lacks: the bank has room there for none"


def http_rules(http: HttpConfig) -> Broken:
    yield from texts(http, "http.", "host")
    yield from positive(http, "http.", "queue", "timeout", "poll", "catalog_timeout", "tracked", "body_bytes", "buffer")
    yield from not_negative(http, "http.", "drain", "check_every")
    if not 0 <= http.port < 1 << 16:
        yield "http.port", f"must be 0 (any free one) to 65535, got {http.port}"


def train_rules(config: TrainConfig) -> Broken:
    yield from texts(config, "", "name", "output")
    yield from positive(config, "", "steps", "slice_steps", "accumulate", "page_size")
    yield from not_negative(config, "", "slots", "evaluate_every", "seed")
    yield from mesh_rules(config.mesh)
    yield from data_rules(config.data, "data.")
    yield from checkpoint_rules(config.checkpoint, "checkpoint.")
    yield from adapter_rules(config.adapter, "adapter.")
    yield from optimizer_rules(config.optimizer, "optimizer.")
    if config.halving is not None:
        yield from halving_rules(config, config.halving)
    if config.pretrain is None:
        yield from users_rules(config)
    else:
        if config.users:
            yield "users", "must be empty when pretrain is set: a run trains the base or adapters over it"
        if config.base is not None:
            yield "base", "must be None when pretrain is set: the run makes a base"
        if config.mesh.expert > 1 or config.mesh.model > 1:
            yield "mesh", "must be 1 along expert and model when pretrain is set: each device trains the whole base"
        if config.base_weights != "plain":
            yield "base_weights", "must be 'plain' when pretrain is set: rounded weights cannot be trained"
        yield from pretrain_rules(config, config.pretrain)


def mesh_rules(mesh: MeshConfig) -> Broken:
    yield from not_negative(mesh, "mesh.", "data")
    yield from positive(mesh, "mesh.", "expert", "model")


def users_rules(config: TrainConfig) -> Broken:
    if config.base_weights != "plain" and config.remat != "full":
        yield "remat", f"must be 'full' over a base in {config.base_weights}: else every layer is kept multiplied out"
    specs = [user.adapter or config.adapter for user in config.users]
    along = [spec.method for spec in specs if METHODS[spec.method].from_gradient is not None]
    if config.base_weights != "plain" and along:
        yield (
            "base_weights",
            f"must be 'plain' for method {along[0]!r}: rounded weights have no gradient to start along",
        )
    if not config.users:
        yield "users", "is empty and pretrain is not set; there is nothing to train"
    if not config.base:
        yield "base", "is missing; name the folder of the frozen base that the adapters are trained over"
    seen: dict[str, int] = {}
    for index, user in enumerate(config.users):
        prefix = f"users.{index}."
        yield from user_rules(user, prefix)
        if user.name in seen:
            yield f"{prefix}name", f"{user.name!r} is also the name of users.{seen[user.name]}; names are unique"
        seen.setdefault(user.name, index)
        if user.task is not None:
            yield from rewarded_rules(config, index, user)
        method = (user.adapter or config.adapter).method
        if METHODS[method].from_gradient is not None and user.task is not None:
            yield f"{prefix}task", f"has no texts, along whose gradient method {method!r} starts"
        if method == "delta_mem" and user.task is not None:
            yield f"{prefix}task", "is not learned by 'delta_mem', whose memories are trained on texts with a history"
    yield from rollout_rules(config.rollout, "rollout.")
    yield from policy_loss_rules(config.policy_loss, "policy_loss.")
    yield from positive(config.sampler, "sampler.", "sequences", "step_tokens")
    yield from not_negative(config.sampler, "sampler.", "stale")
    if config.sampler.stale and 0 < config.slots < len(config.users):
        yield "sampler.stale", f"needs a slot for each of the {len(config.users)} users, slots are {config.slots}"
    share, length = config.data.tokens_per_user, config.data.sequence_length
    if share % config.page_size:
        yield "data.tokens_per_user", f"must be a multiple of page_size ({config.page_size}), got {share}"
    if length > share:
        yield "data.sequence_length", f"must fit a user's share of a step (tokens_per_user {share}), got {length}"


def user_rules(user: UserConfig, prefix: str) -> Broken:
    yield from texts(user, prefix, "name")
    if (user.train is None) == (user.task is None):
        yield f"{prefix}train", "name a file of text, or give a task to be rewarded for: one of the two"
    elif user.train == "":
        yield f"{prefix}train", "must not be empty"
    if user.heldout == "":
        yield f"{prefix}heldout", "is empty; name a file, or None for no held-out lines"
    if user.adapter is not None:
        yield from adapter_rules(user.adapter, f"{prefix}adapter.")
    if user.optimizer is not None:
        yield from optimizer_rules(user.optimizer, f"{prefix}optimizer.")
    if user.task is not None:
        yield from ((f"{prefix}task.{name}", problem) for name, problem in task_rules(user.task))
    if user.rollout is not None:
        yield from rollout_rules(user.rollout, f"{prefix}rollout.")
    if user.policy_loss is not None:
        yield from policy_loss_rules(user.policy_loss, f"{prefix}policy_loss.")
    if user.steps is not None:
        yield from positive(user, prefix, "steps")
    if user.seed is not None:
        yield from not_negative(user, prefix, "seed")


def rewarded_rules(config: TrainConfig, index: int, user: UserConfig) -> Broken:
    """What must hold between the fields that say what a user draws and learns from."""
    how, prefix = user.rollout or config.rollout, f"users.{index}."
    if how.prompts % config.accumulate:
        yield f"{prefix}rollout.prompts", f"must be a multiple of accumulate ({config.accumulate}), got {how.prompts}"
    name = (user.policy_loss or config.policy_loss).name
    if how.context and name in LOSSES and LOSSES[name].old != "none":
        yield (
            f"{prefix}rollout.context",
            f"answers that are drawn with the context are not the policy's own: {name} cannot learn from them, "
            "cross_entropy can",
        )
    page, share = config.page_size, config.data.tokens_per_user
    each = -(-config.data.sequence_length // page) * page
    answers = how.prompts // config.accumulate * how.group
    if answers * each > share:
        yield (
            "data.tokens_per_user",
            f"must hold the {answers} answers of a micro-batch of {user.name!r}, up to {each} tokens each "
            f"(data.sequence_length in whole pages): {answers * each}, got {share}",
        )


def rollout_rules(rollout: RolloutConfig, prefix: str) -> Broken:
    yield from positive(rollout, prefix, "prompts", "group", "max_tokens", "updates")
    yield from not_negative(rollout, prefix, "temperature", "heldout", "heldout_temperature")
    yield from holds(rollout, prefix, lambda x: 0 < x <= 1, "must be above 0 and at most 1", "top_p")


def policy_loss_rules(loss: PolicyLossConfig, prefix: str) -> Broken:
    if loss.name not in LOSSES:
        yield f"{prefix}name", f"no loss is called {loss.name!r}; there are {', '.join(LOSSES)}"
        return
    yield from not_negative(loss, prefix, "kl", "entropy", "redraw", "overlong")
    for name in ("clip_low", "clip_high", "beta"):
        if getattr(loss, name) is not None:
            yield from not_negative(loss, prefix, name)
    try:
        correction(loss.correction, LOSSES[loss.name].old, loss.correction_low, loss.correction_high)
    except PefxError as error:
        yield f"{prefix}correction", str(error)
    if loss.drop_unrouted and loss.replay == "live":
        yield f"{prefix}drop_unrouted", "is of replayed routes; set replay to 'trainer' or 'sampler', or leave it out"


def pretrain_rules(config: TrainConfig, pretrain: PretrainConfig) -> Broken:
    yield from texts(pretrain, "pretrain.", "tokenizer", "train", "heldout", "export")
    yield from positive(pretrain, "pretrain.", "batch_tokens")
    yield from model_rules(pretrain.model, "pretrain.model.")
    if pretrain.batch_tokens % config.page_size:
        yield "pretrain.batch_tokens", f"must be a multiple of page_size ({config.page_size})"
    length = config.data.sequence_length
    for limit, name in ((pretrain.batch_tokens, "pretrain.batch_tokens"), (pretrain.model.context, "model.context")):
        if length > limit:
            yield "data.sequence_length", f"must be at most {name} ({limit}), got {length}"


def data_rules(data: DataConfig, prefix: str) -> Broken:
    yield from positive(data, prefix, "sequence_length", "tokens_per_user", "users_per_step", "heldout_tokens")
    yield from not_negative(data, prefix, "seed")


def checkpoint_rules(checkpoint: CheckpointConfig, prefix: str) -> Broken:
    yield from not_negative(checkpoint, prefix, "every")
    yield from positive(checkpoint, prefix, "keep")


def adapter_rules(spec: AdapterSpec, prefix: str) -> Broken:
    yield from positive(spec, prefix, "rank", "alpha", "units", "states")
    yield from target_rules(spec.targets, prefix)
    method = METHODS[spec.method]
    for target in spec.targets:
        if target in SITES and (reason := method.refuses(SITES[target])):
            yield f"{prefix}targets", f"method {spec.method!r} cannot adapt {target!r}: {reason}"
    if spec.method == "delta_mem" and spec.rank % MEMORY_RANKS:
        yield f"{prefix}rank", f"of a memory must be a multiple of {MEMORY_RANKS}, got {spec.rank}"
    if spec.over:
        yield f"{prefix}over", "is of what requests leave behind ('remember'); leave it empty"
    if spec.method == "delta_state":
        yield f"{prefix}method", "'delta_state' is what a request leaves behind ('remember'); it is not trained"
    if spec.tied and spec.method != "tiny_lora":
        yield f"{prefix}tied", f"is of 'tiny_lora', whose layers can share their numbers; {spec.method!r} cannot"
    if spec.init != "default" and (method.derive is not None or set(method.leaves) != {"a", "b"}):
        yield f"{prefix}init", f"is of LoRA and its kin; {spec.method!r} starts as it does"
    if spec.frozen != "none" and (spec.frozen not in method.leaves or len(method.leaves) == 1):
        yield f"{prefix}frozen", f"is of methods that train a and b; {spec.method!r} trains {', '.join(method.leaves)}"


def target_rules(targets: tuple[str, ...], prefix: str) -> Broken:
    if not targets:
        yield f"{prefix}targets", f"is empty; choose from {', '.join(SITES)}"
    for index, target in enumerate(targets):
        if target not in SITES:
            yield f"{prefix}targets", f"unknown site {target!r}; sites are {', '.join(SITES)}"
        elif target in targets[:index]:
            yield f"{prefix}targets", f"site {target!r} is given twice"


def optimizer_rules(optimizer: OptimizerConfig, prefix: str) -> Broken:
    yield from positive(optimizer, prefix, "learning_rate", "clip", "epsilon")
    yield from not_negative(optimizer, prefix, "warmup_steps", "weight_decay")
    yield from holds(optimizer, prefix, lambda x: 0 <= x <= 1, "must be from 0 to 1", "final_fraction")
    yield from holds(optimizer, prefix, lambda x: 0 <= x < 1, "must be at least 0 and below 1", "beta1", "beta2")


def model_rules(model: ModelConfig, prefix: str) -> Broken:
    sizes = ("vocab_size", "hidden", "layers", "heads", "dense_hidden", "context", "rope_theta", "norm_epsilon")
    yield from positive(model, prefix, *sizes)
    for layer in model.dense_layers:
        if not 0 <= layer < model.layers:
            yield f"{prefix}dense_layers", f"layer {layer} is outside 0 to {model.layers - 1}"
    yield from (latent_rules if model.kv_rank else head_rules)(model, prefix)
    if model.yarn is not None:
        yield from positive(model.yarn, f"{prefix}yarn.", "factor", "original_context", "beta_fast", "beta_slow")
        yield from positive(model.yarn, f"{prefix}yarn.", "attention_factor")
        yield from not_negative(model.yarn, f"{prefix}yarn.", "latent_factor")
    if set(range(model.layers)) - set(model.dense_layers):
        yield from expert_rules(model, prefix)


def head_rules(model: ModelConfig, prefix: str) -> Broken:
    yield from positive(model, prefix, "kv_heads", "head_size")
    if model.kv_heads > 0 and model.heads % model.kv_heads:
        yield f"{prefix}heads", f"must be a multiple of kv_heads ({model.kv_heads}), got {model.heads}"
    if model.head_size % 2:
        yield f"{prefix}head_size", f"must be even for rotary positions, got {model.head_size}"
    elif not 0 < model.rotary_fraction <= 1 or int(model.head_size * model.rotary_fraction) % 2:
        yield (
            f"{prefix}rotary_fraction",
            f"must be above 0, at most 1, and leave an even part of a head ({model.head_size}), "
            f"got {model.rotary_fraction}",
        )
    for name in ("query_rank", "nope_head_size", "rope_head_size", "value_head_size"):
        if getattr(model, name):
            yield prefix + name, "is of latent attention, and kv_rank is 0; give a kv_rank, or 0 here"


def latent_rules(model: ModelConfig, prefix: str) -> Broken:
    yield from positive(model, prefix, "kv_rank", "nope_head_size", "rope_head_size", "value_head_size")
    yield from not_negative(model, prefix, "query_rank")
    if model.rope_head_size % 2:
        yield f"{prefix}rope_head_size", f"must be even for rotary positions, got {model.rope_head_size}"
    if model.attention_bias:
        yield f"{prefix}attention_bias", "must be False with latent attention (kv_rank above 0)"


def expert_rules(model: ModelConfig, prefix: str) -> Broken:
    sizes = ("expert_hidden", "experts", "experts_per_token", "expert_groups", "groups_per_token", "gate_scale")
    yield from positive(model, prefix, *sizes)
    yield from not_negative(model, prefix, "shared_experts")
    experts, groups, kept = model.experts, model.expert_groups, model.groups_per_token
    if groups > 1 and (experts % groups or experts < 2 * groups):
        yield f"{prefix}expert_groups", f"must divide experts ({experts}) into groups of two or more, got {groups}"
    elif kept > groups:
        yield f"{prefix}groups_per_token", f"must be at most expert_groups ({groups}), got {kept}"
    elif groups > 0 and model.experts_per_token > experts * kept // groups:
        those = (
            f"experts ({experts})"
            if groups == 1
            else f"experts of groups_per_token groups ({experts * kept // groups})"
        )
        yield f"{prefix}experts_per_token", f"must be at most the {those}, got {model.experts_per_token}"
