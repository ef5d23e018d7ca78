import copy
from typing import Any

import pytest
import yaml
from conftest import ROOT

# Made from the JobSet API's own OpenAPI description, with Kubernetes' for the pods.
from kubeflow_trainer_api.models.jobset_v1alpha2_job_set import JobsetV1alpha2JobSet


@pytest.fixture
def job_set() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "launch/gke.yaml").read_text())


def accepted(job_set: dict[str, Any]) -> dict[str, Any]:
    """What the API understands of it: a wrong type is refused, an unknown key is dropped."""
    return JobsetV1alpha2JobSet.from_dict(copy.deepcopy(job_set)).to_dict()


def test_every_key_is_one_of_the_api(job_set):
    assert accepted(job_set) == job_set


@pytest.mark.parametrize(
    "path, key, value",
    [
        (["spec", "failurePolicy"], "maxRestart", 100),
        (["spec", "replicatedJobs", 0, "template", "spec"], "backofLimit", 0),
        (["spec", "replicatedJobs", 0, "template", "spec", "template", "spec"], "nodeSelect", {}),
    ],
)
def test_a_misspelt_key_would_be_found(job_set, path, key, value):
    place = job_set
    for part in path:
        place = place[part]
    place[key] = value
    assert accepted(job_set) != job_set


def test_one_death_is_everybodys_and_only_wrong_input_is_final(job_set):
    (replicated,) = job_set["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    # JAX finds its processes by the completion index, and all of them run at once.
    assert job["completionMode"] == "Indexed"
    assert job["parallelism"] == job["completions"]
    assert job["backoffLimit"] == 0 and pod["restartPolicy"] == "Never"
    (rule,) = job["podFailurePolicy"]["rules"]
    assert rule["action"] == "FailJob"
    assert rule["onExitCodes"] == {
        "containerName": container["name"],
        "operator": "In",
        "values": [2],
    }
    (policy,) = job_set["spec"]["failurePolicy"]["rules"]
    assert policy["action"] == "FailJobSet"
    assert policy["onJobFailureReasons"] == ["PodFailurePolicy"]


def test_hosts_and_chips_make_up_the_topology(job_set):
    job = job_set["spec"]["replicatedJobs"][0]["template"]["spec"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    chips = 1
    for side in pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x"):
        chips *= int(side)
    assert job["parallelism"] * container["resources"]["limits"]["google.com/tpu"] == chips
