"""The Hub's rules for the metadata of a model card, as far as they can be held without asking it.

Those of hub-docs (modelcard.md, docs/hub/model-cards.md, docs/hub/repositories-licenses.md) and of huggingface_hub's
`ModelCardData`: `ModelCard.validate` asks the Hub's server, which also knows which data sets and models there are.
"""

import math
import re

import yaml
from huggingface_hub.utils import HFValidationError, validate_repo_id
from transformers.pipelines import SUPPORTED_TASKS

LICENCES = """
apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0 bigcode-openrail-m
afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5
cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0
cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 cdla-permissive-1.0
cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0 lgpl
lgpl-2.1 lgpl-3.0 isc lppl-1.3c ms-pl mpl-2.0 odc-by odbl openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib
pddl lgpl-lr deepfloyd-if-license llama2 llama3 llama3.1 llama3.2 llama3.3 gemma unknown other
""".split()
# ISO 639-1; the Hub also takes codes of three letters.
LANGUAGES = """
aa ab ae af ak am an ar as av ay az ba be bg bh bi bm bn bo br bs ca ce ch co cr cs cu cv cy da de dv dz ee el en eo es
et eu fa ff fi fj fo fr fy ga gd gl gn gu gv ha he hi ho hr ht hu hy hz ia id ie ig ii ik io is it iu ja jv ka kg ki kj
kk kl km kn ko kr ks ku kv kw ky la lb lg li ln lo lt lu lv mg mh mi mk ml mn mr ms mt my na nb nd ne ng nl nn no nr nv
ny oc oj om or os pa pi pl ps pt qu rm rn ro ru rw sa sc sd se sg si sk sl sm sn so sq sr ss st su sv sw ta te tg th ti
tk tl tn to tr ts tt tw ty ug uk ur uz ve vi vo wa wo xh yi yo za zh zu
""".split()
LIBRARIES = ("transformers", "peft")
RELATIONS = ("finetune", "adapter", "merge", "quantized")
FIELDS = {
    *("license", "license_name", "license_link", "language", "library_name", "pipeline_tag", "tags", "datasets"),
    *("base_model", "base_model_relation", "model-index"),
}


def is_id(value):
    """Whether a value has the form of a repository's id."""
    try:
        validate_repo_id(value)
    except HFValidationError:
        return False
    return True


def is_text(value):
    return isinstance(value, str) and bool(value.strip())


def strings(value):
    return isinstance(value, list) and bool(value) and all(map(is_text, value)) and len(set(value)) == len(value)


def empties(value):
    """Whether nothing, or something that JSON has no number for, stands anywhere in it."""
    if isinstance(value, dict):
        return any(map(empties, value.values()))
    if isinstance(value, list):
        return not value or any(map(empties, value))
    return value is None or (isinstance(value, float) and not math.isfinite(value))


def broken_in_result(result):
    task, dataset, metrics = (result.get(key) for key in ("task", "dataset", "metrics"))
    if not (isinstance(task, dict) and task.get("type") in SUPPORTED_TASKS):
        yield "task.type"
    if not (isinstance(dataset, dict) and is_text(dataset.get("type")) and is_text(dataset.get("name"))):
        yield "dataset.type, dataset.name"
    elif not all(is_text(dataset.get(key, "-")) for key in ("config", "split", "revision")):
        yield "dataset.config, dataset.split, dataset.revision"
    if not isinstance(metrics, list) or not metrics:
        yield "metrics"
    for metric in metrics or []:
        value = metric.get("value")
        if not is_text(metric.get("type")) or not isinstance(value, (int, float)) or isinstance(value, bool):
            yield "metrics.type, metrics.value"
        if not is_text(metric.get("name", "-")) or not isinstance(metric.get("args", {}), dict):
            yield "metrics.name, metrics.args"
    kinds = [metric.get("type") for metric in metrics or []]
    if len(set(kinds)) < len(kinds):
        yield "metrics.type twice"


def broken_in_index(index, data):
    if not (isinstance(index, list) and len(index) == 1 and is_text(index[0].get("name")) and index[0].get("results")):
        yield "model-index"
        return
    for result in index[0]["results"]:
        yield from broken_in_result(result)
        if data.get("pipeline_tag") != result.get("task", {}).get("type"):
            yield "task.type, pipeline_tag"


def broken_rules(text):
    """The fields of a card's metadata that break a rule, by name."""
    front = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
    data = yaml.safe_load(front[1]) if front else None
    if not isinstance(data, dict):
        return ["---"]
    found = sorted(data.keys() - FIELDS)
    names = {"license_name", "license_link"} & data.keys()
    own = data.get("license") == "other"
    checks = {
        "license": data.get("license", "mit") in LICENCES and len(names) == 2 * own,
        "language": "language" not in data or (strings(data["language"]) and set(data["language"]) <= set(LANGUAGES)),
        "library_name": data.get("library_name") in LIBRARIES,
        "pipeline_tag": data.get("pipeline_tag") in SUPPORTED_TASKS,
        "tags": strings(data.get("tags"))
        and all(re.fullmatch(r"[\w.-]+|arxiv:\d{4}\.\d{4,5}", tag) for tag in data["tags"]),
        "datasets": "datasets" not in data or (strings(data["datasets"]) and all(map(is_id, data["datasets"]))),
        "base_model": "base_model" not in data or is_id(data["base_model"]),
        "base_model_relation": data.get("base_model_relation") in (RELATIONS if "base_model" in data else (None,)),
        "nothing": not empties(data),
    }
    found += [name for name, holds in checks.items() if not holds]
    return found + (list(broken_in_index(data["model-index"], data)) if "model-index" in data else [])
