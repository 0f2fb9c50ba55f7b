"""The first line of a checkpoint: what each version of saev wrote there, and its meaning.

A checkpoint is one line of JSON, followed by `torch.save` of the model's weights. Since its
first release saev has written that line in seven formats:

| schema     | config at            | widths                      | activation              |
|------------|----------------------|-----------------------------|-------------------------|
| none       | at the top           | d_vit, exp_factor           | always ReLU             |
| 1, first   | "cfg"                | d_vit, exp_factor           | top-level "cls"         |
| 1, later   | "cfg"                | as the first, or as 3       | cfg "activation"        |
| 2          | "cfg"                | as the first, or as 3       | cfg "activation"        |
| 3          | "cfg"                | d_model, exp_factor         | cfg "activation"        |
| 4, 5       | "cfg"                | d_model, d_sae              | cfg "activation"        |

An activation is {"cls": …, "params": {…}}. If only the factor is given, d_sae = d_model *
exp_factor. Unknown keys are refused, as saev refuses them.
"""

import copy
import dataclasses
import json
import math
import typing as tp

from .. import jsonl
from ..kinds import ACTIVATIONS, RULES, THRESHOLD
from ..text import clipped

MAX_WIDTH = 2**24

ACTIVATION_KEYS = {a.cls: a.key for a in ACTIVATIONS.values()}
"""An activation's key in W&B configs and lines, by its class in saev."""

PARAMS = {a.cls: a.params for a in ACTIVATIONS.values()}
DEFAULT_TOP_K = 32
"""saev's default, for headers without one."""

TRAINING_KEYS = {
    "n_reinit_samples",
    "normalize_w_dec",
    "reinit_blend",
    "reinit_enc_dec_tranpose",  # sic
    "remove_parallel_grads",
    "seed",
}
NO_SCHEMA_KEYS = {"sparsity_coeff", "ghost_grads", "l1_coeff", "use_ghost_grads"}

LOSSES = {
    "sparsity": {"NoSparsity": "no-sparsity", "L1Sparsity": "l1-sparsity"},
    "aux": {"NoAux": "no-aux", "AuxK": "auxk"},
}
"""The losses besides the reconstruction's: the keys of their classes in saev."""

LOSS_PARAMS = {
    "NoSparsity": {"key"},
    "L1Sparsity": {"key", "coeff"},
    "NoAux": {"key"},
    "AuxK": {"key", "k_aux", "alpha"},
}

MAX_DEPTH = 7
"""How many objects and lists deep a header may be, since later code recurses. saev's are six."""

MAX_NUMBER = 2**53
"""The largest number in an activation's config that jq doesn't round; lines carry it."""


class Refused(Exception):
    """Why a checkpoint can't be read, without the file's name, which `checkpoint.File` adds."""


@dataclasses.dataclass(frozen=True)
class Header:
    schema: int | None
    d_model: int
    """Width of the model's activations."""
    d_sae: int
    """Number of features."""
    activation: str
    """Its key: relu, top-k, …"""
    top_k: int | None
    """How many features fire; None for an activation without a k."""
    aux: str | None
    """The key of its auxiliary loss; None if the header has none, as before schema 5."""
    activation_config: dict[str, tp.Any]
    """As in the header; {} if it has none."""
    normalize_w_dec: bool
    """Whether training kept the decoder's rows at unit norm."""
    raw: dict[str, tp.Any]

    @property
    def rule(self) -> str:
        """The rule of `kinds` by which its features fire."""
        return RULES[self.activation]

    @property
    def subtracts_b_dec(self) -> bool:
        """Whether the saev that trained it subtracted b_dec from x before encoding.

        saev did until 31 July 2025 (its commit e7ca004), when schema 1 got its later form;
        saev has not done so since.
        """
        return self.schema is None or (
            self.schema == 1 and self.raw.get("cls") in ACTIVATION_KEYS
        )

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor that the weights must hold, all float32."""
        shapes: dict[str, tuple[int, ...]] = {
            "W_enc": (self.d_model, self.d_sae),
            "b_enc": (self.d_sae,),
            "W_dec": (self.d_sae, self.d_model),
            "b_dec": (self.d_model,),
        }
        if self.rule == THRESHOLD:
            shapes["activation.threshold"] = ()
        return shapes


def parse(text: bytes) -> Header:
    """Parse a checkpoint's first line.

    Raises:
        Refused: It is not JSON, or not a header that saev writes.
    """
    try:
        raw = json.loads(
            text.decode("utf-8"),
            object_pairs_hook=_no_duplicates,
            parse_constant=_no_constant,
            parse_float=_finite,
        )
        is_too_deep = jsonl.depth(raw) > MAX_DEPTH
    except RecursionError:
        is_too_deep = True
    except ValueError as err:
        raise Refused(f"its header is not JSON: {_short(err)}") from None
    if is_too_deep:
        raise Refused("its header is nested too deep")
    if not isinstance(raw, dict):
        raise Refused("its header is not a JSON object")
    return _from(raw)


def shrunk(header: Header) -> Header:
    """The same header for an SAE of 4 inputs and 8 features, without commit and version."""
    raw = copy.deepcopy(header.raw)
    if header.schema is None:
        cfg = raw
    else:
        cfg = raw["cfg"]
        raw |= {"commit": "", "lib": ""}
    small = {"d_vit": 4, "d_model": 4, "d_sae": 8, "exp_factor": 2}
    cfg.update({key: value for key, value in small.items() if key in cfg})
    return _from(raw)


def _from(raw: dict[str, tp.Any]) -> Header:
    schema = raw.get("schema")
    cfg: tp.Any
    activation_config: tp.Any
    if "schema" not in raw:
        cfg, cls, params = raw, "Relu", {}
        known = {"d_vit", "exp_factor"} | TRAINING_KEYS | NO_SCHEMA_KEYS
        activation_config = {}
    elif type(schema) is not int or not 1 <= schema <= 5:
        raise Refused(f"schema {_short(schema)} is not one that saev writes (1 to 5)")
    else:
        cfg = raw.get("cfg")
        if not isinstance(cfg, dict):
            raise Refused('its header has no "cfg"')
        known = {"d_model", "exp_factor", "d_sae"} | TRAINING_KEYS
        known |= {"d_vit"} if schema <= 2 else set()
        if schema == 1 and raw.get("cls") in ACTIVATION_KEYS:
            cls, params = raw["cls"], {k: cfg[k] for k in ("top_k",) if k in cfg}
            known |= {"top_k"}
            activation_config = {"cls": cls, "params": params}
        else:
            known |= {"activation"}
            activation_config = cfg.get("activation")
            cls, params = _class_and_params(activation_config)
    for key in cfg:
        if key not in known:
            raise Refused(f"its header has {_short(key)}, which saev doesn't know")
        if key != "activation" and isinstance(cfg[key], (dict, list)):
            raise Refused(
                f"its header's {key} is {_short(cfg[key])}, not a single value"
            )
    d_model, d_sae = _widths(cfg)
    normalize_w_dec = cfg.get("normalize_w_dec", True)
    if type(normalize_w_dec) is not bool:
        raise Refused("its header's normalize_w_dec is not true or false")
    _loss("sparsity", params, schema)
    return Header(
        schema=schema,
        d_model=d_model,
        d_sae=d_sae,
        activation=ACTIVATION_KEYS[cls],
        top_k=_top_k(cls, params),
        aux=_loss("aux", params, schema),
        activation_config=activation_config,
        normalize_w_dec=normalize_w_dec,
        raw=raw,
    )


def _class_and_params(config: object) -> tuple[str, dict[str, tp.Any]]:
    if not isinstance(config, dict) or not isinstance(config.get("params"), dict):
        raise Refused('its header has no "activation" with "cls" and "params"')
    cls = config.get("cls")
    if not isinstance(cls, str) or cls not in ACTIVATION_KEYS:
        raise Refused(f"activation {_short(cls)} is not one of {', '.join(PARAMS)}")
    params: dict[str, tp.Any] = {}
    for name, value in config["params"].items():
        key = "key" if name == "kind" else name  # its former name
        if key not in PARAMS[cls] or key in params:
            raise Refused(f"activation {cls} has {_short(name)}, which saev refuses")
        params[key] = value
    if params.get("key", ACTIVATION_KEYS[cls]) != ACTIVATION_KEYS[cls]:
        raise Refused(f"activation {cls} has the key {_short(params['key'])}")
    if not _is_number(params.get("momentum", 0.0)):
        raise Refused(f"momentum is {_short(params['momentum'])}, not a number")
    return cls, params


def _loss(name: str, params: dict[str, tp.Any], schema: int | None) -> str | None:
    """The key of one of `LOSSES`; None if the header has none."""
    if name not in params:
        return None
    config = params[name]
    if not isinstance(config, dict):
        raise Refused(f"its {name} is {_short(config)}, not an object")
    if name == "sparsity" and "cls" not in config and schema != 5:
        # Before schema 5: {} or {"coeff": …}.
        config = {"cls": "L1Sparsity" if config else "NoSparsity", "params": config}
    cls, of_loss = config.get("cls"), config.get("params")
    if not isinstance(cls, str) or cls not in LOSSES[name]:
        raise Refused(
            f"its {name} {_short(cls)} is not one of {', '.join(LOSSES[name])}"
        )
    if config.keys() != {"cls", "params"} or not isinstance(of_loss, dict):
        raise Refused(f'its {name} is {_short(config)}, not a "cls" with "params"')
    key = LOSSES[name][cls]
    for param, value in of_loss.items():
        param = "key" if param == "kind" else param
        if param not in LOSS_PARAMS[cls]:
            raise Refused(f"its {name} {cls} has {_short(param)}, which saev refuses")
        if param == "key" and value != key:
            raise Refused(f"its {name} {cls} has the key {_short(value)}")
        if param == "k_aux" and not _is_width(value):
            raise Refused(f"k_aux is {_short(value)}, not a positive whole number")
        if param != "key" and not _is_number(value):
            raise Refused(
                f"its {name} {cls}'s {param} is {_short(value)}, not a number"
            )
    return key


def _top_k(cls: str, params: dict[str, tp.Any]) -> int | None:
    if "top_k" not in PARAMS[cls]:
        return None
    top_k: int = params.get("top_k", DEFAULT_TOP_K)
    if not _is_width(top_k):
        raise Refused(f"top_k is {_short(top_k)}, not a positive whole number")
    return top_k


def _widths(cfg: dict[str, tp.Any]) -> tuple[int, int]:
    for one, other in (("d_model", "d_vit"), ("d_sae", "exp_factor")):
        if (one in cfg) == (other in cfg):
            raise Refused(f"its header must have either {one} or {other}")
    d_model: tp.Any = cfg.get("d_model", cfg.get("d_vit"))
    d_sae: tp.Any = cfg.get("d_sae", cfg.get("exp_factor"))
    if not _is_width(d_model) or not _is_width(d_sae):
        raise Refused(f"widths {_short(d_model)} and {_short(d_sae)} are impossible")
    if "exp_factor" in cfg:
        d_sae *= d_model
    return d_model, d_sae


def _is_width(value: object) -> bool:
    return type(value) is int and 0 < value < MAX_WIDTH


def _is_number(value: tp.Any) -> bool:
    return type(value) in (int, float) and abs(value) <= MAX_NUMBER


def _no_duplicates(pairs: list[tuple[str, tp.Any]]) -> dict[str, tp.Any]:
    obj = dict(pairs)
    if len(obj) != len(pairs):
        raise Refused("its header has a key twice")
    return obj


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise Refused(f"its header has {text[:20]}, which no float holds")
    return value


def _no_constant(name: str) -> tp.NoReturn:
    raise Refused(f"its header has {name}, which is not JSON")


def _short(value: object) -> str:
    """A header's value, or an error about it, shortened for a message."""
    return clipped(str(value) if isinstance(value, Exception) else json.dumps(value))
