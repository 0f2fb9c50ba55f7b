#!/usr/bin/env -S jq -nrf
# Print what was released, one line per repo, from the output of verify or collect.
#
# example:
#   bin/plan < build/vitl-topk/rendered.jsonl | bin/push | bin/verify | bin/announce

def human:
  if . < 999.5 then "\(.) B"
  elif . < 999500 then "\(. / 100 | round / 10) kB"
  elif . < 999500000 then "\(. / 1e5 | round / 10) MB"
  else "\(. / 1e7 | round / 100) GB"
  end;

# The last line names repos that are not public or not verified, and the command to continue.
try (
  [inputs] | group_by(.repo)
  | (map(select(.[0].url)) | .[]
    | ([.[].bytes] + [.[0].documents[].bytes]) as $sizes
    | "\(.[0].url)  \($sizes | length) files, \($sizes | add | human), \(.[0].seconds) s, verified"),
    ( map(select(.[0].url | not)) as $rest
    | if $rest == [] then empty else
        ( "announce: " + ([ ($rest | map(select(.[0].commit) | .[0].repo) | select(. != [])
            | "public but not verified: \(join(", "))"),
            ($rest | map(select(.[0].commit | not) | .[0].repo) | select(. != [])
            | "not released: \(join(", "))")
          ] | join("; "))
        ) + "; to continue: \($ENV.AGAIN // "" | if . == "" then "the same command" else . end)\n"
        | halt_error(1)
      end )
) catch ("announce: \(.)\n" | halt_error(1))
