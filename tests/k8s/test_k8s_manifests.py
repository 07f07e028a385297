"""The manifests, read as data: what they promise a cluster's administrator, and that their parts fit each other."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import tomllib
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from packaging.requirements import Requirement

from parrot_dist.config import Config
from parrot_dist.train import parse
from tests.k8s.pods import CLUSTERS, FOLDER, JOBS, REPOSITORY, Tree, cluster_of, document, documents, templates_of

BESIDE = REPOSITORY.parent / "shared" / "tools" / "kube"
RESOURCES = {file: documents(file)[0] for file in (*CLUSTERS, *JOBS)}
TEMPLATES = {f"{file}-{part}": pod for file in RESOURCES for part, pod in templates_of(RESOURCES[file]).items()}
TRAINING = {name: pod for name, pod in TEMPLATES.items() if not name.endswith("submitter")}
every_resource = pytest.mark.parametrize("file", RESOURCES)
every_pod = pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
every_training_pod = pytest.mark.parametrize("template", TRAINING.values(), ids=TRAINING)
every_job = pytest.mark.parametrize("file", JOBS)


def unrestricted(pod: Tree) -> list[str]:
    """What PodSecurity "restricted" would refuse in a pod's spec (kubernetes.io, Pod Security Standards)."""
    faults = [key for key in ("hostNetwork", "hostPID", "hostIPC") if pod.get(key)]
    allowed = {"name", "configMap", "emptyDir", "secret", "projected", "downwardAPI", "persistentVolumeClaim", "csi"}
    faults += [f"volume {volume['name']}" for volume in pod.get("volumes", []) if set(volume) - allowed]
    for container in pod["containers"] + pod.get("initContainers", []):
        own = container.get("securityContext", {})
        security = pod.get("securityContext", {}) | own
        rules = {
            "privileged": not own.get("privileged"),
            "allowPrivilegeEscalation": own.get("allowPrivilegeEscalation") is False,
            "capabilities": own.get("capabilities") == {"drop": ["ALL"]},
            "runAsNonRoot": security.get("runAsNonRoot") is True,
            "runAsUser": security.get("runAsUser") != 0,
            "seccompProfile": security.get("seccompProfile", {}).get("type") in ("RuntimeDefault", "Localhost"),
            "hostPort": not any("hostPort" in port for port in container.get("ports", [])),
        }
        faults += [name for name, holds in rules.items() if not holds]
    return faults


@every_pod
def test_pods_are_fit_for_restricted(template: Tree) -> None:
    assert unrestricted(template["spec"]) == []


@pytest.mark.parametrize(
    ("place", "key", "value"),
    [
        ("pod", "hostNetwork", True),
        ("pod", "volumes", [{"name": "host", "hostPath": {"path": "/"}}]),
        ("podSecurity", "runAsNonRoot", False),
        ("podSecurity", "seccompProfile", {}),
        ("container", "securityContext", {}),
        ("containerSecurity", "privileged", True),
        ("containerSecurity", "runAsUser", 0),
        ("containerSecurity", "allowPrivilegeEscalation", True),
        ("containerSecurity", "capabilities", {"drop": ["ALL"], "add": ["SYS_ADMIN"]}),
    ],
)
def test_the_check_for_restricted_sees(place: str, key: str, value: object) -> None:
    pod = deepcopy(TEMPLATES["rayjob-gpu-head"]["spec"])
    container = pod["containers"][0]
    places = {
        "pod": pod,
        "podSecurity": pod["securityContext"],
        "container": container,
        "containerSecurity": container["securityContext"],
    }
    places[place][key] = value
    assert unrestricted(pod)


def test_the_namespace_enforces_restricted() -> None:
    labels = document("namespace", "Namespace", "parrot")["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"


@every_pod
def test_only_tmp_and_shared_memory_are_writable(template: Tree) -> None:
    (container,) = template["spec"]["containers"]
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    volumes = {volume["name"]: volume for volume in template["spec"]["volumes"]}
    writable = {
        mount["mountPath"]: volumes[mount["name"]]["emptyDir"]
        for mount in container["volumeMounts"]
        if not mount.get("readOnly")
    }
    assert {"/tmp"} <= set(writable) <= {"/tmp", "/dev/shm"}
    assert all("sizeLimit" in volume for volume in writable.values())
    assert writable.get("/dev/shm", {"medium": "Memory"})["medium"] == "Memory"


@every_training_pod
def test_training_pods_share_memory_through_memory_and_get_time_to_stop(template: Tree) -> None:
    assert "/dev/shm" in {mount["mountPath"] for mount in template["spec"]["containers"][0]["volumeMounts"]}
    assert template["spec"]["terminationGracePeriodSeconds"] > 30  # as long a deleted worker goes on training


@every_pod
def test_every_container_has_requests_and_limits(template: Tree) -> None:
    resources = template["spec"]["containers"][0]["resources"]
    assert {"cpu", "memory"} <= set(resources["requests"])
    assert set(resources["requests"]) == set(resources["limits"])


@every_pod
def test_images_are_of_this_version(template: Tree, request: pytest.FixtureRequest) -> None:
    version = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["version"]
    device = "gpu" if "gpu" in request.node.callspec.id else "cpu"
    assert template["spec"]["containers"][0]["image"].rpartition("/")[2] == f"parrot-dist:{version}-{device}"


def test_secrets_come_by_reference() -> None:
    text = "".join(path.read_text() for path in FOLDER.glob("*.yaml"))
    assert not re.search(r"kind: Secret\b|SECRET_ACCESS_KEY|ACCESS_KEY_ID|SESSION_TOKEN|auth_token", text)
    for template in TEMPLATES.values():
        assert all("value" not in variable for variable in template["spec"]["containers"][0].get("env", []))
        assert template["spec"]["automountServiceAccountToken"] is False


@every_training_pod
def test_what_training_pods_refer_to_is_there(template: Tree) -> None:
    (container,) = template["spec"]["containers"]
    store, keys = container["envFrom"]
    document("settings", "ConfigMap", store["configMapRef"]["name"])
    assert keys == {"secretRef": {"name": "parrot-store", "optional": True}}
    for volume in template["spec"]["volumes"]:
        if "configMap" in volume:
            document("settings", "ConfigMap", volume["configMap"]["name"])
    document("namespace", "ServiceAccount", template["spec"]["serviceAccountName"])


@every_resource
def test_ray_wants_a_token_and_is_not_exposed(file: str) -> None:
    cluster = cluster_of(RESOURCES[file])
    versions = dict(line.split("==") for line in (REPOSITORY / "constraints.txt").read_text().split() if "==" in line)
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["rayVersion"] == versions["ray"]
    assert cluster["headGroupSpec"]["serviceType"] == "ClusterIP"
    assert not cluster["headGroupSpec"].keys() & {"enableIngress", "ingressOptions", "headService"}


def test_only_the_projects_pods_the_operator_and_prometheus_reach_ray() -> None:
    policy = document("namespace", "NetworkPolicy", "parrot-dist")["spec"]
    ours = policy["podSelector"]["matchLabels"]
    assert all(ours.items() <= template["metadata"]["labels"].items() for template in TEMPLATES.values())
    inside, operator, prometheus = policy["ingress"]
    assert inside == {"from": [{"podSelector": {"matchLabels": ours}}]}
    for peer in [*operator["from"], *prometheus["from"]]:  # in a namespace of one's own one may label pods as one likes
        assert peer["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"]
        assert peer["podSelector"]["matchLabels"]["app.kubernetes.io/name"]
    assert operator["ports"] == [{"protocol": "TCP", "port": 8265}]
    assert prometheus["ports"] == [{"protocol": "TCP", "port": 8080}]  # KubeRay's metrics-export-port


@every_resource
def test_a_training_group_never_changes_its_size_and_spreads(file: str) -> None:
    cluster = cluster_of(RESOURCES[file])
    assert "enableInTreeAutoscaling" not in cluster
    for group in cluster["workerGroupSpecs"]:
        assert group["minReplicas"] == group["replicas"] == group["maxReplicas"]
        (spread,) = group["template"]["spec"]["topologySpreadConstraints"]
        assert spread["topologyKey"] == "kubernetes.io/hostname"
        assert spread["labelSelector"]["matchLabels"]["ray.io/group"] == group["groupName"]


@every_job
def test_a_job_ends_and_is_not_submitted_twice(file: str) -> None:
    spec = RESOURCES[file]["spec"]
    assert spec["submitterConfig"]["backoffLimit"] == 0
    # A new cluster is all that helps after a lost head, and more of them would only repeat a run that ends in error.
    assert spec["backoffLimit"] == 2
    assert spec["shutdownAfterJobFinishes"] is True
    assert spec["ttlSecondsAfterFinished"] > 0
    assert yaml.safe_load(spec["runtimeEnvYAML"]) == yaml.safe_load((REPOSITORY / "jobs/runtime_env.yaml").read_text())


def settings_of(file: str, folder: Path, patch: pytest.MonkeyPatch) -> Config:
    """The configuration of the job's command line, with the settings that k8s/settings.yaml mounts and sets."""
    for name, value in document("settings", "ConfigMap", "parrot-store")["data"].items():
        patch.setenv(name, value)
    words = shlex.split(RESOURCES[file]["spec"]["entrypoint"])
    assert words == RESOURCES[file]["spec"]["entrypoint"].split()  # two shells read it: nothing for them to change
    assert words[:4] == ["python", "-m", "parrot_dist.train", "--config"]
    (folder / "job.yaml").write_text(document("settings", "ConfigMap", "parrot-job")["data"][Path(words[4]).name])
    return parse(["--config", str(folder / "job.yaml"), *words[5:]])


@every_job
def test_a_jobs_workers_fill_the_pods(file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scale = settings_of(file, tmp_path, monkeypatch).scale
    (group,) = cluster_of(RESOURCES[file])["workerGroupSpecs"]
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert scale.num_workers == group["replicas"]
    assert scale.cpus_per_worker == int(limits["cpu"])
    assert scale.placement == "SPREAD"
    assert scale.use_gpu == ("gpu" in file)
    assert limits.get("nvidia.com/gpu") == ("1" if scale.use_gpu else None)
    head = cluster_of(RESOURCES[file])["headGroupSpec"]
    assert head["rayStartParams"] == {"num-cpus": "0"}


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_a_jobs_cluster_is_the_cluster(device: str) -> None:
    assert cluster_of(RESOURCES[f"rayjob-{device}"]) == RESOURCES[f"raycluster-{device}"]["spec"]


def leaves(tree: object, path: str = "") -> Iterator[tuple[str, object]]:
    if isinstance(tree, dict | list):
        for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield from leaves(value, f"{path}.{key}")
    else:
        yield path, tree


def test_with_and_without_gpus_differ_in_the_workers_and_the_image_only() -> None:
    cpu, gpu = (dict(leaves(RESOURCES[f"rayjob-{device}"])) for device in ("cpu", "gpu"))
    places = {path for path in cpu | gpu if cpu.get(path) != gpu.get(path) and not path.endswith(".image")}
    worker = ".spec.rayClusterSpec.workerGroupSpecs.0.template.spec"
    of_workers = (f"{worker}.{part}" for part in ("nodeSelector", "tolerations", "containers.0.resources", "volumes"))
    expected = (".spec.entrypoint", *of_workers)
    assert all(any(path.startswith(place) for path in places) for place in expected[:4])
    assert [path for path in places if not path.startswith(expected)] == []


def test_the_image_is_pinned_and_without_root() -> None:
    text = (FOLDER / "Dockerfile").read_text()
    assert re.search(r"^FROM python:3\.11\.\d+-\S+@sha256:[0-9a-f]{64}$", text, re.MULTILINE)
    assert "--require-hashes" in text
    (user,) = re.findall(r"^USER (.*)", text, re.MULTILINE)
    for template in TEMPLATES.values():
        security = template["spec"]["securityContext"]
        assert f"{security['runAsUser']}:{security['runAsGroup']}" == user


def lock(device: str) -> dict[str, str]:
    """Package, as normalised by PEP 503 -> version."""
    lines = (FOLDER / f"requirements-{device}.lock").read_text().splitlines()
    found = [re.fullmatch(r"([\w.-]+)==(\S+) --hash=sha256:[0-9a-f]{64}", x) for x in lines if not x.startswith("--")]
    assert all(found)
    return {re.sub(r"[-_.]+", "-", match[1]).lower(): match[2] for match in found if match}


def test_the_locks_hold_the_versions_that_the_tests_passed_with() -> None:
    """If not, k8s/lock.sh writes new ones."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    wanted = {wish.name.lower(): wish.specifier for wish in map(Requirement, project["dependencies"])}
    pins = dict(line.split("==") for line in (REPOSITORY / "constraints.txt").read_text().split() if "==" in line)
    pins = {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in pins.items()}
    for device in ("cpu", "gpu"):
        versions = lock(device)
        assert set(wanted) <= set(versions)
        assert {name: versions[name] for name, bounds in wanted.items() if versions[name] not in bounds} == {}
        assert {name: v for name, v in versions.items() if v.split("+")[0] != pins.get(name, v.split("+")[0])} == {}
    assert lock("cpu")["torch"].endswith("+cpu")
    assert "nvidia-nccl-cu13" in lock("gpu")


def test_nothing_but_its_script_decides_on_the_locks(tmp_path: Path) -> None:
    """An index or a folder of wheels in the environment would put torch for CPUs into the lock for GPUs."""
    (tmp_path / "k8s").mkdir()
    script = shutil.copy(FOLDER / "lock.sh", tmp_path / "k8s")
    for program, script_of in {"python3.11": f"env | grep ^PIP_ >> {tmp_path}/heard; echo", "jq": "cat"}.items():
        (tmp_path / program).write_text(f"#!/bin/sh\n{script_of}\n")
        (tmp_path / program).chmod(0o755)
    links = {"PIP_FIND_LINKS": "/wheels", "PIP_EXTRA_INDEX_URL": "https://index", "PIP_INDEX_URL": "https://index"}
    subprocess.run([script], env={"PATH": f"{tmp_path}:/usr/bin:/bin"} | links, check=True)
    assert set((tmp_path / "heard").read_text().split()) == {"PIP_CONFIG_FILE=/dev/null"}


@pytest.fixture(scope="module")
def validate() -> Callable[[Path], list[str]]:
    """The faults in a file, found by a kubevalidate.py with the CRDs' schemas beside it."""
    folder = Path(os.environ.get("PARROT_KUBE_SCHEMAS", BESIDE))
    if not (folder / "kubevalidate.py").is_file():
        pytest.skip(
            f"no kubevalidate.py with schemas/ of KubeRay's CRDs in {folder}, nor does PARROT_KUBE_SCHEMAS name it"
        )
    spec = importlib.util.spec_from_file_location("kubevalidate", folder / "kubevalidate.py")
    assert spec
    assert spec.loader
    module: ModuleType = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return lambda path: module.validate(str(folder / "schemas"), str(path))[0]


@every_resource
def test_the_crds_and_the_operator_take_it(file: str, validate: Callable[[Path], list[str]]) -> None:
    assert validate(FOLDER / f"{file}.yaml") == []


@every_resource
def test_unknown_fields_are_refused_down_to_the_leaves(
    file: str, validate: Callable[[Path], list[str]], tmp_path: Path
) -> None:
    parts = templates_of(RESOURCES[file])
    for part in parts:
        for container_only in (False, True):
            wrong = deepcopy(RESOURCES[file])
            pod = templates_of(wrong)[part]["spec"]
            (pod["containers"][0] if container_only else pod)["securityContext"]["runAsNonroot"] = True
            (tmp_path / "wrong.yaml").write_text(yaml.safe_dump(wrong))
            assert "runAsNonroot" in str(validate(tmp_path / "wrong.yaml"))
