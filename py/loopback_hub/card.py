"""What the Hub checks in a model card's YAML before it accepts the card."""

import re

REPO_ID = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)


def problems(text: str) -> list[str]:
    """What is wrong with the metadata at the head of a README.md; it need not have any."""
    # PyYAML comes with the client.
    import yaml

    match = re.match(r"---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(\r?\n|$)", text, re.DOTALL)
    if match is None:
        return []
    try:
        data = yaml.safe_load(match[1])
    except yaml.YAMLError as err:
        return [f"YAML: {' '.join(str(err).split())}"]
    if not isinstance(data, dict):
        return ["the metadata is not a mapping"]
    found = []
    for key in ("license", "library_name", "pipeline_tag"):
        if key in data and not isinstance(data[key], str | list):
            found.append(f'"{key}" must be a string')
    for key in ("tags", "datasets", "base_model", "language"):
        values = data.get(key, [])
        values = [values] if isinstance(values, str) and key != "tags" else values
        if not isinstance(values, list) or not all(isinstance(v, str) for v in values):
            found.append(f'"{key}" must be a list of strings')
        elif key in ("datasets", "base_model"):
            found += [
                f'"{key}": {v!r} is not a repo id'
                for v in values
                if not REPO_ID.fullmatch(v)
            ]
    return found
