#!/usr/bin/env -S jq -nRrf
# Replace a run's W&B record with what saev wrote into it.
#
# saev's configs come in three versions. An activation is {} (ReLU) or {"top_k": 32} until late
# November 2025, then has a "kind" until 9 December 2025, and a "key" since. For another trainer's
# runs, the catalog names another filter ("facts").
#
# example:
#   bin/extract-ids vitl-topk | bin/fetch-metrics | bin/facts | jq -c '[.run_id, .l0, .activation]'

def fail(i; why): "facts: stdin:\(i): \(why)\n" | halt_error(1);

def excerpt: gsub("[^ -~]"; "?") | if length > 80 then .[0:77] + "..." else . end;

def show: tojson | if length > 60 then .[0:57] + "..." else . end | gsub("[^ -~]"; "?");

def object: if type == "object" then . else {} end;

def text: if type == "string" then . else null end;

# Above 2^53 jq rounds whole numbers, and no real value is that large.
def whole: if type == "number" and . == floor and fabs <= 9007199254740992 then . else null end;

def is_finite: type == "number" and fabs < 1.7976931348623157e308;

# A number, or one of the strings that W&B sends for numbers that JSON lacks.
def measure: if is_finite or IN("NaN", "Infinity", "-Infinity") then . else null end;

def first_of(names): . as $of | first((names | select(in($of)) | $of[.]), null);

# For two weeks "key" was called "kind".
def with_key: if type == "object" and has("kind") and (has("key") | not)
  then {key: .kind} + del(.kind) else . end;

def activation:
  if type != "object" then null else
    with_key
    | {key: (if has("key") then .key elif has("top_k") then "top-k" else "relu" end)} + .
    | if .key | type != "string" then null else
        (if has("top_k") then .top_k |= whole else . end)
        | (if has("sparsity") then .sparsity |= with_key else . end)
        | (if has("aux") then .aux |= with_key else . end)
      end
  end;

def objective:
  if type != "object" then null
  elif has("n_prefixes") | not then "vanilla"
  elif .n_prefixes | whole == null then null
  else "matryoshka" end;

def d_sae($sae; $d_model):
  if $sae | has("d_sae") then $sae.d_sae | whole
  elif $d_model == null then null
  else $sae.exp_factor | whole | if . == null then null else . * $d_model | whole end end;

# The last part of a path, if it can be a shard's name.
def shard: text | if . == null then null else
  split("/") | map(select(. != "")) | last // ""
  | if test("\\A[A-Za-z0-9_-]{1,64}\\z") then . else null end end;

# saev's metadata of the shard that the run was evaluated on, else of the training shard, which
# is of the same model: for recreating a shard that was deleted.
def shard_metadata:
  first(
    ("val_data", "train_data") as $of | .[$of] | object | .metadata
    | select(type == "object") | {of: $of} + .
  ) // null;

# How activations were scaled before training. saev could do so until July 2025; since then its
# loaders refuse to. No checkpoint has the factors.
def scaling:
  first(
    ("train_data", "data", "val_data") as $of | .[$of] | object | to_entries[]
    | select(
        (.key | IN("scale_mean", "scale_norm")) and (.value | . != null and . != false)
        or .key == "clamp" and (.value | is_finite and . < 1e5)
      )
    | "\($of).\(.key) is \(.value | show)"
  ) // null;

# The first malformed value in the record.
def fault($named):
  if type != "object" then null
  elif .state | type != "string" then "state is \(.state | show)"
  elif .config | type != "object" then "config is \(.config | show)"
  elif .config.objective | objective == null then "objective is \(.config.objective | show)"
  elif .config.sae | type != "object" then "sae is \(.config.sae | show)"
  elif .summary | type != "object" then "summary is \(.summary | show)"
  else first(
    .summary as $summary
    | $named | to_entries[] | select(.key | IN("l0", "nmse")) | .value
    | select(in($summary)) | select($summary[.] | measure == null)
    | "\(.) is \($summary[.] | show)"
  ) // null end;

def facts:
  ({l0: "eval/l0", nmse: "eval/normalized_mse", n_dead: "eval/n_dead"}
    + (.expected | object | .metrics | object)) as $named
  | .wandb as $wandb
  | ($wandb | object) as $run
  | ($run.config | object) as $config
  | ($run.summary | object) as $summary
  | ($config.sae | object) as $sae
  | ($config | first_of("train_data", "data") | object) as $train_data
  | ($sae | first_of("d_model", "d_vit") | whole) as $d_model
  | ($sae.activation | activation) as $activation
  | del(.wandb) + {
    # Never "eval/mse": it averages over the prefixes and is not an NMSE.
    l0: ($summary[$named.l0] | measure),
    nmse: ($summary[$named.nmse] | measure),
    n_dead: ($summary[$named.n_dead] | whole),
    objective: ($config.objective | objective),
    n_prefixes: ($config.objective | object | .n_prefixes | whole),
    activation: $activation,
    aux: ($activation | object | .aux | object | .key | text),
    d_model: $d_model,
    d_sae: d_sae($sae; $d_model),
    train_layer: ($train_data.layer | whole),
    scaling: ($config | scaling),
    shard_metadata: ($config | shard_metadata),
    shard: ($config.val_data | object | .shards | shard),
    state: ($run.state | text),
    created_at: ($run.createdAt | text),
    wandb_url: ($run.url | text),
    fault: ($wandb | fault($named))
  };

foreach inputs as $text (0; . + 1; . as $i
  | $text
  | select(startswith("{") or test("\\S"))  # patterns are slow
  | (try fromjson catch fail($i; "not JSON: \($text | excerpt)"))
  | if type != "object" then fail($i; "not a JSON object: \($text | excerpt)")
    elif has("wandb") | not then
      fail($i; "no \"wandb\", which bin/fetch-metrics adds: \($text | excerpt)")
    else facts end
  | tojson)
