#!/usr/bin/env -S jq -nRrf
# Give each line "drop": null, or the first reason why its run can't be released.
# EXCLUDE="id id" in the environment drops by hand.
#
# example:
#   bin/extract-ids vitl-topk | bin/fetch-metrics | bin/classify | jq -r '.drop // "kept"' | sort | uniq -c

def fail(i; why): "classify: stdin:\(i): \(why)\n" | halt_error(1);

def need(i; keys): . as $line | keys - (keys | map(select(in($line)))) |
  if . != [] then fail(i; "no \"\(.[0])\"")
  elif $line.run_id | type != "string" then fail(i; "\"run_id\" is not text")
  elif $line.expected | type != "object" then fail(i; "\"expected\" is not an object")
  else $line end;

def is_finite: type == "number" and fabs < 1.7976931348623157e308;

def show: tojson | if length > 40 then .[0:37] + "..." else . end | gsub("[^ -~]"; "?");

def odds(what; found; expected): "at odds with the catalog: \(what) \(found | show), not \(expected | show)";

def activation_key: .activation | if type == "object" then .key else null end;

def reason($excluded):
  ([.expected.activation] | flatten) as $activations
  | if .run_id | in($excluded) then "excluded by hand"
  elif .state == null and .created_at == null then "not in W&B"
  elif .state | IN("running", "pending") then "still running"
  elif .objective != .expected.objective then
    if .expected.objective == "matryoshka" then "not Matryoshka" else "wrong objective" end
  elif activation_key | IN($activations[]) | not then "wrong activation: \(activation_key | show)"
  elif .train_layer != .layer then odds("layer"; .train_layer; .layer)
  elif .d_model != .expected.d_model then odds("d_model"; .d_model; .expected.d_model)
  elif .d_sae != .expected.d_sae then odds("d_sae"; .d_sae; .expected.d_sae)
  elif .l0 == null then "no L0"
  elif .nmse == null then "no NMSE from \(.nmse_source // "wandb")"
  elif .l0 | is_finite | not then "not finite: L0 \(.l0 | show)"
  elif .nmse | is_finite | not then "not finite: NMSE \(.nmse | show)"
  elif .l0 <= 0 then "L0 is \(.l0 | show): a dead SAE"
  else null
  end;

([$ENV.EXCLUDE // "" | splits("[ ,]+") | {key: ., value: true}] | from_entries) as $excluded
| foreach inputs as $text (0; . + 1; . as $i
  | $text
  | select(test("^\\s*$") | not)
  | (try fromjson catch fail($i; "not JSON"))
  | if type == "object" then . else fail($i; "not a JSON object") end
  | need($i; ["repo", "layer", "run_id", "expected", "l0", "nmse", "nmse_source", "objective",
      "activation", "d_model", "d_sae", "train_layer", "state", "created_at"])
  | . + {drop: reason($excluded)}
  | tojson)
