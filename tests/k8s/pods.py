"""The manifests as data, and a pod without Kubernetes: a command held to what the manifest grants its container."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from tests.corpus import CLASSES

Tree = dict[str, Any]
REPOSITORY = Path(__file__).parents[2]
FOLDER = REPOSITORY / "k8s"
CLUSTERS = ("raycluster-cpu", "raycluster-gpu")
JOBS = ("rayjob-cpu", "rayjob-gpu")
KERNEL = ("/dev", "/proc", "/sys")
SYSTEM = (*KERNEL, *(path for path in ("/usr", "/etc", "/bin", "/lib", "/lib64") if Path(path).is_dir()))


def documents(file: str) -> list[Tree]:
    """All documents of `file` in k8s/, given without its suffix."""
    return list(yaml.safe_load_all((FOLDER / f"{file}.yaml").read_text()))


def document(file: str, kind: str, name: str) -> Tree:
    """The one document of this kind and name in `file`."""
    (found,) = (d for d in documents(file) if (d["kind"], d["metadata"]["name"]) == (kind, name))
    return found


def cluster_of(resource: Tree) -> Tree:
    """The spec of the Ray cluster that a RayCluster is, or that a RayJob makes."""
    spec: Tree = resource["spec"]
    return spec.get("rayClusterSpec", spec)


def templates_of(resource: Tree) -> dict[str, Tree]:
    """The pod templates of a RayCluster or RayJob, by what they are for."""
    cluster = cluster_of(resource)
    found = {"head": cluster["headGroupSpec"]["template"]}
    found |= {group["groupName"]: group["template"] for group in cluster["workerGroupSpecs"]}
    if resource["kind"] == "RayJob":
        found["submitter"] = resource["spec"]["submitterPodTemplate"]
    return found


def small_job(url: str) -> str:
    """The job of k8s/settings.yaml, of one short epoch on the tests' tones, with its encoders below `url`."""
    text = document("settings", "ConfigMap", "parrot-job")["data"]["job.yaml"].replace("s3://parrot", url)
    small = {"data": {"classes": list(CLASSES), "lanes": 4}, "optim": {"batch_size": 8, "epochs": 1}}
    return yaml.safe_dump(yaml.safe_load(text) | small)


def image_environment() -> dict[str, str]:
    """What the Dockerfile sets; its PYTHONPATH is this checkout."""
    text = re.sub(r"\\\n\s*", "", (FOLDER / "Dockerfile").read_text())
    words = " ".join(re.findall(r"^ENV (.*)", text, re.MULTILINE)).split()
    return dict(word.split("=", 1) for word in words) | {"PYTHONPATH": str(REPOSITORY)}


def confined(pod: Tree, volumes: Mapping[str, Path]) -> list[str]:
    """What to put before a command, so that it runs like the first container of `pod`: with its user, without
    capabilities, with its view of the file system, which holds the system, this checkout and its interpreter.

    An emptyDir becomes a tmpfs; `volumes` are the folders that stand for the other volumes. All of it ends with the
    command. Needs root.
    """
    container = pod["containers"][0]
    security = pod["securityContext"] | container["securityContext"]
    empty = {volume["name"] for volume in pod["volumes"] if "emptyDir" in volume}
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    script = ["set -e", "root=/mnt", "mount -t tmpfs -o mode=755 tmpfs $root"]
    script += [f"mkdir $root{path} && mount --rbind {path} $root{path}" for path in SYSTEM]
    for path, name in mounts.items():
        if name in empty:
            script.append(f"mkdir -p $root{path} && mount -t tmpfs -o mode=1777 tmpfs $root{path}")
    image = dict.fromkeys(str(Path(path).resolve()) for path in (REPOSITORY, sys.prefix, sys.base_prefix))
    binds = {path: path for path in image} | {p: str(volumes[name]) for p, name in mounts.items() if name not in empty}
    script += [f"mkdir -p $root{path} && mount --bind {source} $root{path}" for path, source in binds.items()]
    if security.get("readOnlyRootFilesystem"):
        script.append("mount -o remount,ro $root")
        script += [f"mount -o remount,bind,ro $root{path}" for path in (*SYSTEM, *binds) if path not in KERNEL]
    user = f"--reuid={security['runAsUser']} --regid={security['runAsGroup']} --groups={security['fsGroup']}"
    privileges = "" if security.get("allowPrivilegeEscalation", True) else "--no-new-privs"
    if security.get("capabilities", {}).get("drop") == ["ALL"]:
        privileges += " --inh-caps=-all --bounding-set=-all"
    script.append(f'exec unshare --root=$root --wd=/tmp setpriv {user} {privileges} -- "$@"')
    return ["unshare", "--mount", "--propagation=private", "bash", "-c", "\n".join(script), "pod"]
