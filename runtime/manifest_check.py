"""What the entries of a manifest say of each other, looked at when it is made: before anything is allocated."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .backends.kernels.info import SPELT, SUFFIX
from .engine_info import FIXED_NODES, FIXED_PAIRS, PLAN_SUFFIX, REPORT_SUFFIX, PlanInfo
from .errors import CascadeError
from .model_info import FEATURES, MOST_SLOTS, TOKENS, PromptForm
from .rules import get_rule
from .rules.relaxed import Relaxed
from .rules.states import StateTable
from .tree import AUTO, NO_TREE, AnyTree, get_tree, is_tree, same_shape

if TYPE_CHECKING:
    from .bundle import Manifest, TreeInfo

_NEEDED = ("target", "embed", "condition", "decode")
_TEXT, _DRAFT = "text", "draft."
_PRECISIONS = ("fp32", "fp16", "bf16")
_MOST_CODES = 1 << 24
_MOST_SIZE = 1 << 18  # of an open dimension
_RTX, _CLASSIC = "tensorrt-rtx", "tensorrt"
_CAPABILITY = re.compile(r"[1-9][0-9]?\.[0-9]")
_VERSION = re.compile(r"[0-9]{1,4}(\.[0-9A-Za-z+]{1,16}){1,6}")
_PLATFORM = re.compile(r"[a-z0-9_]{1,32}-[a-z0-9_]{1,32}")


def check_manifest(manifest: Manifest) -> None:
    """Raises CascadeError for the first thing that cannot be."""
    for check in (_sizes, _text, _defaults, _engines, _files, _trees, _merged, _rules, _plans, _kernels, _reports):
        for wrong in check(manifest):
            raise CascadeError(f"{wrong}: build the bundle again.")


def _sizes(m: Manifest) -> Iterator[str]:
    model, target, of = m.model, m.target, f"of bundle {m.name}"
    prefix, length = model.condition.length, model.plan.length
    if not 1 <= m.batch <= MOST_SLOTS:
        yield f"bundle {m.name} has a batch of {m.batch}, not of 1 to {MOST_SLOTS}"
    if model.plan.codes > _MOST_CODES:
        yield f"the token plan {of} has {model.plan.codes} codes, more than {_MOST_CODES}"
    if target.window < prefix:
        yield f"the target {of} takes {target.window} nodes a call, fewer than the {prefix} slots of its prefix"
    if not 2 <= m.most_nodes <= target.window:
        yield f"the target {of} takes {m.most_nodes} nodes of an image, not 2 to {target.window}"
    if target.slots < prefix + length + m.most_nodes:
        needs = f"a prefix of {prefix}, {length} tokens and {m.most_nodes} nodes"
        yield f"the target {of} has {target.slots} cache slots, too few for {needs}"
    if m.drafter is not None and m.drafter.slots < prefix - 1 + length + m.most_nodes:
        yield f"the drafter {of} has {m.drafter.slots} cache slots, too few for what {m.most_nodes} nodes may bring"
    if target.top_k != min(target.max_top_k, model.vocab_size):
        yield f"the target {of} returns {target.top_k} logits, not the {target.max_top_k} or all that it was built for"
    for part, heads, few in [("target", model.n_head, model.n_kv_head)] + (
        [] if m.drafter is None else [("drafter", m.drafter.n_head, m.drafter.n_kv_head)]
    ):
        if few < 1 or heads % few:
            yield f"the {part} {of} has {heads} heads for {few} of keys and values"


def _text(m: Manifest) -> Iterator[str]:
    """How prompts get in, where the model reads texts: through a text encoder, or as token ids."""
    condition, text, of = m.model.condition, m.text, f"of bundle {m.name}"
    reads_ids, form = condition.kind == TOKENS, None if text is None else text.form
    if reads_ids != (form is not None):
        yield f"the model {of} reads {condition.kind}, and its prompts {'have no' if reads_ids else 'have a'} form"
    read = 0 if m.drafter is None else m.drafter.prompt_ids
    if read and (form is None or read != condition.vocabulary or not _ends_alike(form)):
        yield f"the drafter {of} reads prompts that are not what the model reads, or whose rows end differently"
    if text is None:
        return
    if condition.kind not in (FEATURES, TOKENS) or text.max_length != condition.length:
        what = "ids" if reads_ids else "features"
        yield f"the way of prompts in {of} gives {text.max_length} {what}, which is not what the model reads"
    if form is None:
        return
    if any(not 0 <= token < condition.vocabulary for token in (*form.ids, text.pad_id)):
        yield f"the form of prompts {of} has ids that are not from 0 to {condition.vocabulary - 1}"
    if condition.uncond_length != (len(form.uncond) or None):
        yield f"the form of prompts {of} has an unconditional row that is not the model's"


def _ends_alike(form: PromptForm) -> bool:
    """Whether both rows have the same ids where the unconditional one shows any, but for its first: a drafter reads one
    row of ids for both."""
    shown = form.uncond[1:]
    return bool(form.uncond) and form.end[len(form.end) - len(shown) :] == shown


def _defaults(m: Manifest) -> Iterator[str]:
    """What is drawn with where a caller says nothing."""
    from .options import DrawOptions, check_sampling  # which know a manifest themselves

    try:
        check_sampling(m, DrawOptions())
    except CascadeError as error:
        yield f"the default settings of bundle {m.name} cannot be used ({_part(error)})"


def _engines(m: Manifest) -> Iterator[str]:
    missing = [name for name in _NEEDED if name not in m.engines]
    if missing:
        yield f"bundle {m.name} lacks the engine {missing[0]}"
    for name, info in m.engines.items():
        if name not in (*_NEEDED, _TEXT) and not name.startswith(_DRAFT):
            yield f"bundle {m.name} has an engine {name!r}, which no model has"
        if info.precision not in _PRECISIONS or info.precision != m.engines["target"].precision:
            yield f"the engine {name} of bundle {m.name} has the precision {info.precision!r}, which fits no other"
    if (_TEXT in m.engines) != (m.text is not None and m.text.form is None):
        yield f"bundle {m.name} has a text engine without a tokenizer, or a tokenizer without its engine"


def _files(m: Manifest) -> Iterator[str]:
    plans = [file for plan in m.plans for file in plan.files]
    for name in (*m.files, *plans, *(info.file for info in m.kernels)):
        path = Path(name)
        if path.is_absolute() or path.drive or not path.parts or ".." in path.parts or str(path) != name:
            yield f"bundle {m.name} names the file {name!r}, which may lie outside of it"
    graphs = [(name, file) for name, info in m.engines.items() for file in (*info.graphs, *info.weights)]
    tables = [("prompts", None if m.text is None else m.text.tokenizer), ("lantern", m.neighbours),
              ("swap", m.states)]  # fmt: skip
    for what, file in [*graphs, *tables]:
        if file is not None and file not in m.files:
            yield f"bundle {m.name} reads {file} ({what}), which is none of its files"


def _trees(m: Manifest) -> Iterator[str]:
    names, drafted = [info.name for info in m.trees], dict[str, AnyTree]()
    for info in m.trees:
        if (wrong := _wrong_with(m, info, names)) is not None:
            yield f"the tree {info.name} of bundle {m.name} {wrong}"
        part = info.tree().drafted
        if part is not None and not same_shape(drafted.setdefault(str(info.engine), part), part):
            yield f"the engine {info.engine} of bundle {m.name} cannot draft what two of its trees need"


def _wrong_with(m: Manifest, info: TreeInfo, names: list[str]) -> str | None:
    if names.count(info.name) > 1 or info.name in (AUTO, NO_TREE):
        return "has a name that means another"
    if info.engine is not None and not (info.engine in m.engines and info.engine.startswith(_DRAFT)):
        return f"names {info.engine!r}, which is no engine that drafts"
    if info.dynamic is None and not is_tree(info.parents):
        return "is no tree"
    if not 2 <= (len(info.parents) if info.dynamic is None else info.tree().size) <= m.most_nodes:
        return f"does not fit into a call of {m.most_nodes} nodes"
    tree = info.tree()
    if (tree.drafted is None) != (info.engine is None):
        return "has an engine and drafts nothing, or drafts and has no engine"
    if (meant := _meaning_of(info.name)) is not None and meant != tree:
        return "has a name that means another"
    return None


def _meaning_of(name: str) -> AnyTree | None:
    """The tree that everybody calls so, if there is one."""
    if Path(name).suffix == ".json":
        return None  # no file is looked for
    try:
        return get_tree(name)
    except CascadeError:
        return None


def _merged(m: Manifest) -> Iterator[str]:
    if m.merged is None:
        return
    file, names = m.merged.file, m.merged.engines
    wrong = [f"holds {name}, which is none of its engines" for name in names if name not in m.engines]
    wrong += ["names an engine twice"] if len(set(names)) < len(names) else []
    wrong += ["is none of its files"] if file not in m.files else []
    yield from (f"the merged graph {file} of bundle {m.name} {what}" for what in wrong)


def _rules(m: Manifest) -> Iterator[str]:
    """An operating point gives a rule its settings. It makes no other rule of it."""
    neighbours = None if m.neighbours is None else np.zeros((1, 1), np.int64)  # tables play no part in settings
    states = None if m.states is None else StateTable(np.zeros((1, 1), np.float16), np.ones(1, np.float32))
    for name, spelt in m.rules.items():
        point = f"the operating point {spelt!r} of rule {name} in bundle {m.name}"
        if spelt.partition(":")[0] != name:
            yield f"{point} is of another rule"
        try:
            takes_settings = isinstance(get_rule(spelt, neighbours, states), Relaxed)
        except CascadeError as error:
            yield f"{point} cannot be used ({_part(error)})"
        else:
            if not takes_settings:
                yield f"{point} is none: the rule has no settings"


def _plans(m: Manifest) -> Iterator[str]:
    """What an engine was compiled for and from. A file may serve several targets, and then all that is said of it is
    the same; it goes when it is compiled again, so it is nothing else."""
    seen, files = set[tuple[str, str]](), dict[str, PlanInfo]()
    for plan in m.plans:
        what = f"the plan {plan.file} of bundle {m.name}"
        if not (plan.file.endswith(PLAN_SUFFIX) and plan.report.endswith(REPORT_SUFFIX)) or (
            m.files.keys() & plan.files
        ):
            yield f"{what} and its report {plan.report} are no {PLAN_SUFFIX} and {REPORT_SUFFIX} files of their own"
        if plan.engine not in m.engines:
            yield f"{what} is one of the engine {plan.engine!r}, which the bundle has not"
        if (wrong := _compiled_for(plan)) is not None:
            yield f"{what} {wrong}"
        if plan.precision != m.engines[plan.engine].precision:
            yield f"{what} has the precision {plan.precision!r}, its engine another"
        if (plan.target, plan.engine) in seen:
            yield f"bundle {m.name} has the engine {plan.engine} for {plan.target} twice"
        seen.add((plan.target, plan.engine))
        first = files.setdefault(plan.file, plan)
        same = replace(first, target=plan.target, compute_capability=plan.compute_capability, key=plan.key) == plan
        if not same or files.setdefault(plan.report, plan).file != plan.file:
            yield f"{what}, or its report, is named twice, and not as one engine"
        for profile in plan.profiles:
            if not 1 <= profile.get("P", 0) <= MOST_SLOTS or not all(1 <= n <= _MOST_SIZE for n in profile.values()):
                yield f"{what} has a profile of sizes that no call has"


def _compiled_for(plan: PlanInfo) -> str | None:
    """What is wrong with a plan's target, and with what it says of GPU, library and platform."""
    kind, _, architecture = plan.target.partition(":")
    if plan.target != _CLASSIC and not (kind == "rtx" and SPELT.fullmatch(architecture)):
        return f"is for {plan.target!r}, which is no target (as rtx:sm89 and {_CLASSIC} are)"
    if plan.backend != (_CLASSIC if plan.target == _CLASSIC else _RTX):
        return f"is for {plan.target}, and the backend {plan.backend!r} is another's"
    number = plan.compute_capability.replace(".", "", 1)
    if not _CAPABILITY.fullmatch(plan.compute_capability) or (kind == "rtx" and architecture != f"sm{number}"):
        return f"is for {plan.target} and the compute capability {plan.compute_capability!r}, which no GPU of it has"
    if not _VERSION.fullmatch(plan.backend_version):
        return f"is for version {plan.backend_version!r} of {plan.backend}, which is none"
    if not _PLATFORM.fullmatch(plan.platform):
        return f"is for {plan.platform!r}, which is no platform (as linux-x86_64 is)"
    return None


def _kernels(m: Manifest) -> Iterator[str]:
    """One file for each architecture, which is nothing else: it goes when it is compiled again."""
    known, seen = {*m.files, *(file for plan in m.plans for file in plan.files)}, set[str]()
    for info in m.kernels:
        if not SPELT.fullmatch(info.architecture):
            yield f"bundle {m.name} has kernels for {info.architecture!r}, which is no architecture (as sm90 is)"
        if not info.file.endswith(SUFFIX) or info.file in known:
            yield f"the kernels {info.file} of bundle {m.name} are no {SUFFIX} file of their own"
        if info.architecture in seen:
            yield f"bundle {m.name} has kernels for {info.architecture} twice"
        known.add(info.file)
        seen.add(info.architecture)


def _reports(m: Manifest) -> Iterator[str]:
    """What is shown, and what compiling goes by."""
    for engine, report in m.parity.items():
        if not _is_report(report):
            yield f"the parity report of the engine {engine} in bundle {m.name} cannot be read"
    for plan in m.plans:
        for option in (FIXED_NODES, FIXED_PAIRS):
            size = plan.options.get(option)
            if size is not None and not (type(size) is int and 1 <= size <= _MOST_SIZE):
                yield f"the plan {plan.file} of bundle {m.name} has {option} of {size!r}"


def _part(error: CascadeError) -> str:
    """Its sentence as a part of another."""
    return str(error).removesuffix(".")


def _is_report(report: dict[str, Any]) -> bool:
    """{"skipped": why}, or {"outputs": {name: {"absolute": x, "relative": y}}}, perhaps with "activations"."""
    outputs, activations = report.get("outputs"), report.get("activations", {"largest": 0.0, "fp16": ""})
    if "skipped" not in report and not (isinstance(outputs, dict) and outputs):
        return False
    shown = outputs.values() if isinstance(outputs, dict) else ()
    return (
        isinstance(report.get("skipped", ""), str)
        and all(isinstance(one, dict) and _is_number(one, "absolute") and _is_number(one, "relative") for one in shown)
        and isinstance(activations, dict) and _is_number(activations, "largest")
        and isinstance(activations.get("fp16"), str)
    )  # fmt: skip


def _is_number(entries: dict[str, Any], name: str) -> bool:
    value = entries.get(name)
    return isinstance(value, float) or (type(value) is int and abs(value) <= 1 << 62)
