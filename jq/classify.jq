#!/usr/bin/env -S jq -nRrf
# Add "drop" to each line: null, or the first reason why the run can't be released. Its numbers
# are left to settle. EXCLUDE="id id" in the environment drops runs by hand.
#
# example:
#   bin/extract-ids vitl-topk | bin/fetch-metrics | bin/facts | bin/classify | jq -r '.drop // "kept"' | sort | uniq -c

def fail(i; why): "classify: stdin:\(i): \(why)\n" | halt_error(1);

def excerpt: gsub("[^ -~]"; "?") | if length > 80 then .[0:77] + "..." else . end;

def need(i; text; keys): . as $line | keys - keys_unsorted |
  if . != [] then fail(i; "no \"\(.[0])\": \(text | excerpt)")
  elif $line.run_id | type != "string" then fail(i; "\"run_id\" is not text: \(text | excerpt)")
  elif $line.expected | type != "object" then
    fail(i; "\"expected\" is not an object: \(text | excerpt)")
  else $line end;

def show: tojson | if length > 40 then .[0:37] + "..." else . end | gsub("[^ -~]"; "?");

def conflict(what; found; expected): "at odds with the catalog: \(what) \(found | show), not \(expected | show)";

def activation_key: .activation | if type == "object" then .key else null end;

# The malformed value that facts found, if any.
def because: if .fault | type == "string" then " (\(.fault))" else "" end;

def reason($excluded):
  ([.expected.activation] | flatten) as $activations
  | if .run_id | in($excluded) then "excluded by hand"
  elif .state == null and .created_at == null and .fault == null then "not in W&B"
  elif .state == null then "no state in W&B" + because
  elif .state | IN("running", "pending") then "still running"
  elif .objective != .expected.objective then
    (if .expected.objective == "matryoshka" then "not Matryoshka" else "wrong objective" end)
    + if .objective == null then because else "" end
  elif activation_key | IN($activations[]) | not then
    "wrong activation: \(activation_key | show)"
    + if .activation == null then because else "" end
  elif .expected.aux != null and .aux != .expected.aux then "wrong aux: \(.aux | show)"
  elif .train_layer != .layer then conflict("layer"; .train_layer; .layer)
  elif .d_model != .expected.d_model then conflict("d_model"; .d_model; .expected.d_model)
  elif .d_sae != .expected.d_sae then conflict("d_sae"; .d_sae; .expected.d_sae)
  elif .scaling | type == "string" then "trained on scaled activations: \(.scaling)"
  else null
  end;

([$ENV.EXCLUDE // "" | splits("[\\s,]+") | {key: ., value: true}] | from_entries) as $excluded
| foreach inputs as $text (0; . + 1; . as $i
  | $text
  | select(startswith("{") or test("\\S"))  # patterns are slow
  | (try fromjson catch fail($i; "not JSON: \($text | excerpt)"))
  | if type == "object" then . else fail($i; "not a JSON object: \($text | excerpt)") end
  | need($i; $text; ["repo", "layer", "run_id", "expected", "objective", "activation", "aux",
      "d_model", "d_sae", "train_layer", "state", "created_at"])
  | . + {drop: reason($excluded)}
  | tojson)
