"""What a manifest says of the model: sizes that buffers and caches are made for, and defaults."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from .errors import CascadeError
from .plan import TokenPlan
from .schema import Count, Escaped, Within

MOST_SLOTS = 1024  # images at the same time
FEATURES, CLASS, TOKENS = "features", "class", "tokens"  # kinds of condition
SLOT, OWN = "slot", "own"  # where the positions of a prefix count from
NEAREST, DOWN = "nearest", "down"  # how the decoder's numbers become whole ones (`images.py`)
MOST_WORDS = 256  # tokens of a template before or behind the text

# Wide of every published model; what the graphs were built for is compared with them (`graph_check.py`).
Width = Annotated[int, Within(1, 1 << 18)]
Layers = Annotated[int, Within(1, 1 << 10)]
Heads = Annotated[int, Within(1, 1 << 12)]
Slots = Annotated[int, Within(1, 1 << 18)]


@dataclass(frozen=True)
class ConditionInfo:
    """How a request becomes prefix rows: the `condition` engine's inputs and the layout of the prefix.

    `kind` is "features" (float features [R, length, width]), "class" (ids [R], one of `classes`) or "tokens" (token
    ids [R, length], below `vocabulary`); `length` is T, the slots of the prefix. Prefixes are right-aligned: slot
    T - 1 is valid in every row. `uncond_length` None gives the unconditional row the mask of the conditional one; a
    number gives it its own last slots.
    `positions` "slot": a prefix slot's rotary row is its slot number, and token i of the sequence has row T + i.
    "own": each row counts from 0 at its own first valid slot.
    """

    kind: str
    length: Annotated[int, Within(1, 1 << 14)]
    width: Annotated[int, Within(0, 1 << 18)] = 0
    classes: Annotated[int, Within(0, 1 << 24)] = 0
    uncond_length: int | None = None
    positions: str = SLOT
    vocabulary: Annotated[int, Within(0, 1 << 24)] = 0

    def __post_init__(self) -> None:
        if self.kind not in (FEATURES, CLASS, TOKENS) or self.positions not in (SLOT, OWN):
            raise CascadeError(
                f"a condition of kind {self.kind!r} with positions {self.positions!r} is none that this version "
                "knows: build the bundle again with this version."
            )
        size, name = {
            FEATURES: (self.width, "width"), CLASS: (self.classes, "number of classes"),
            TOKENS: (self.vocabulary, "vocabulary"),
        }[self.kind]  # fmt: skip
        if self.length < 1 or size < 1:
            raise CascadeError(f"the condition's length and {name} must be positive, not {self.length} and {size}.")
        if self.uncond_length is not None and not 1 <= self.uncond_length <= self.length:
            raise CascadeError(f"uncond_length must be from 1 to {self.length}, not {self.uncond_length}.")


@dataclass(frozen=True)
class ModelInfo:
    """What the runtime must know of the target.

    `dim` is D, `features` F, the width of what the readout's linear map reads; `pixels` is the side of a token in
    the decoded image, so that the image is plan.rows * pixels high and plan.columns * pixels wide. `rounding` says how
    decoded numbers become bytes: "nearest" (LlamaGen) or "down" (Janus, Chameleon).
    """

    family: str
    variant: str
    dim: Width
    features: Width
    n_layer: Layers
    n_head: Heads
    n_kv_head: Heads
    head_dim: Heads
    plan: TokenPlan
    condition: ConditionInfo
    pixels: Annotated[int, Within(1, 256)]
    parameters: Count
    rounding: str = NEAREST

    def __post_init__(self) -> None:
        if self.rounding not in (NEAREST, DOWN):
            raise CascadeError(
                f"decoded numbers are rounded {self.rounding!r}, which this version does not know: build the bundle "
                "again with this version."
            )

    @property
    def vocab_size(self) -> int:
        """V, the size of the distribution: the codes of an image, without the tokens that are only forced."""
        return self.plan.codes


@dataclass(frozen=True)
class TargetInfo:
    """Static sizes of the target's graph: S cache slots, W rows of a call at most, K kept logits.

    `most_nodes` are the most nodes of one image in a call, root included, that the bundle was built for. `max_top_k`
    is the largest top_k that the bundle serves; K is the same unless the vocabulary is smaller.
    """

    slots: Slots
    window: Slots
    most_nodes: Slots
    top_k: Annotated[int, Within(1, 1 << 24)]
    max_top_k: Annotated[int, Within(1, 1 << 62)]


@dataclass(frozen=True)
class DrafterInfo:
    """Static sizes of the drafter: its cache of `slots`; `kind` is the architecture.

    `sees_padding`: it attends to the padded slots of the prefix (LANTERN's LlamaGen drafters do). `prompt_ids`: token
    ids of a prompt, which it knows behind the sequence's own tokens; 0 where it does not read the prompt.
    """

    kind: str
    n_head: Heads
    n_kv_head: Heads
    head_dim: Heads
    slots: Slots
    parameters: Count
    sees_padding: bool
    prompt_ids: Annotated[int, Within(0, 1 << 24)] = 0


@dataclass(frozen=True)
class PromptForm:
    """How the prefix of a model that reads token ids is made of a prompt.

    The conditional row is `begin`, then `before` + prompt + `after` tokenised as one text without special tokens, then
    `end`. The unconditional row has ids of its own, `uncond`, in its last slots; or, with `uncond_pad`, the conditional
    row's ids and mask, all between the first and the last valid one replaced by this id. `strip`: without the white
    space around the prompt. `empty` stands in the place of `before` + `after` around an empty prompt, where it is not
    the same. Raises CascadeError unless there is exactly one kind of unconditional row.
    """

    begin: Annotated[list[int], Within(0, MOST_WORDS)]
    before: Annotated[str, Escaped()]
    after: Annotated[str, Escaped()]
    end: Annotated[list[int], Within(0, MOST_WORDS)]
    uncond: Annotated[list[int], Within(0, MOST_WORDS)] = field(default_factory=list)
    uncond_pad: int | None = None
    strip: bool = True
    empty: Annotated[str, Escaped()] = ""

    def __post_init__(self) -> None:
        if bool(self.uncond) == (self.uncond_pad is not None):
            raise CascadeError(
                "a prompt's form has either ids of its own for the unconditional row or one that replaces those of the "
                "conditional row: build the bundle again."
            )

    @property
    def ids(self) -> list[int]:
        """Every id that it names."""
        return [*self.begin, *self.end, *self.uncond, *([] if self.uncond_pad is None else [self.uncond_pad])]


@dataclass(frozen=True)
class TextInfo:
    """The prompt's way in: tokenizer file, length T (left padded with pad_id), whether to clean captions.

    `form`: how a model that reads token ids takes a prompt; None where a text encoder reads them.
    """

    tokenizer: str
    max_length: Annotated[int, Within(1, 1 << 14)]
    pad_id: Annotated[int, Within(0, (1 << 31) - 1)]
    clean: bool
    form: PromptForm | None = None


@dataclass(frozen=True)
class SamplingDefaults:
    """What a caller gets who names no settings; `options.check_sampling` says what they may be."""

    guidance_scale: float
    temperature: float
    top_k: int
    top_p: float
