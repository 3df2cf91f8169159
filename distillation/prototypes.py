"""Prototypes: the k-means centroids of one class's latents, and the files that store them."""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from scripts.artefact import raise_first, read_manifest
from scripts.cli import InputError
from scripts.files import Expected, atomic_path, one_line, read_json, read_tensors, tensor_problems, write_tensors

LARGEST_JSON_BYTES = 2 ** 32  # of the original's file: ImageNet-1K at IPC 10 takes 3.2 GB
REAL_LATENTS = ("medoid", "member", "random")  # prototypes that are latents of real images
LEAST_BATCH = 1024  # scikit-learn's default, without --km_expand; ipc alone is the number of clusters


@dataclass(frozen=True)
class Prototypes:
    """The prototypes of one class."""

    centroids: Tensor              # [IPC, C, h, w], scaled latents
    sizes: Tensor                  # [IPC], images in each cluster
    inertia: Tensor                # [], sum of squared distances
    nearest: Tensor | None = None  # [IPC], index within the class of the image nearest to each centroid, or of the member drawn
    skipped: Tensor | None = None  # indices within the class of unreadable images

    @property
    def weights(self) -> Tensor:
        """Each cluster's fraction of the class [IPC]; their sum is 1."""
        return self.sizes / self.sizes.sum()

    def over(self, rows: np.ndarray, readable: np.ndarray) -> "Prototypes":
        """The same prototypes with indices over all `rows` of the class, of which only `readable` were clustered."""
        read = np.isin(rows, readable)
        indices = torch.from_numpy(np.flatnonzero(read))
        return replace(self, nearest=indices[self.nearest], skipped=torch.from_numpy(np.flatnonzero(~read)))


def nearest_members(latents: Tensor, centroids: Tensor, members: Tensor) -> Tensor:
    """Index [IPC] of each cluster's latent nearest to its centroid; for an empty cluster, the nearest of all latents."""
    return torch.stack([own[(latents[own] - centroid).flatten(1).pow(2).sum(1).argmin()]
                        for own, centroid in zip(members_by_cluster(members, len(centroids)), centroids, strict=True)])


def random_members(latents: Tensor, centroids: Tensor, members: Tensor, *, seed: int) -> Tensor:
    """Index [IPC] of a random latent of each cluster (a stratified sample); for an empty cluster, of all latents."""
    rng = np.random.default_rng(seed)
    return torch.stack([own[rng.integers(len(own))] for own in members_by_cluster(members, len(centroids))])


def members_by_cluster(members: Tensor, clusters: int) -> list[Tensor]:
    """The indices of each cluster's latents by the number of the cluster of each [N]; for an empty one those of all."""
    found = [(members == number).nonzero()[:, 0] for number in range(clusters)]
    return [own if len(own) else torch.arange(len(members)) for own in found]


def cluster(latents: Tensor, ipc: int, km_expand: int | None, seed: int, kmeans: str = "minibatch",
            choose: Callable[[Tensor, Tensor, Tensor], Tensor] = nearest_members) -> Prototypes:
    """Cluster the latents [N, C, h, w] of one class into `ipc` prototypes with scikit-learn (D4M, section 3.2).

    `minibatch` uses batches of km_expand * ipc latents, or without `km_expand` of at least 1,024; `full` is k-means proper.
    `choose(latents, centroids, members)` gives the index [IPC] of each cluster's latent. Raises ValueError for fewer latents
    than prototypes.
    """
    from sklearn.cluster import KMeans, MiniBatchKMeans  # here: it takes seconds, and most stages only read prototypes
    if len(latents) < ipc:
        raise ValueError(f"expected at least {ipc} latents, found {len(latents)}")
    flat = latents.flatten(1).numpy()
    estimator = KMeans(ipc, random_state=seed, n_init="auto") if kmeans == "full" else MiniBatchKMeans(
        ipc, random_state=seed, n_init="auto", batch_size=km_expand * ipc if km_expand else max(ipc, LEAST_BATCH))
    with threadpool_limits(1):  # a fixed order of sums: the number of cores changes nothing
        estimator.fit(flat)
    centroids = torch.from_numpy(estimator.cluster_centers_.astype(np.float32)).reshape(ipc, *latents.shape[1:])
    members = torch.from_numpy(estimator.labels_.astype(np.int64))
    return Prototypes(centroids, torch.bincount(members, minlength=ipc), torch.tensor(float(estimator.inertia_)),
                      choose(latents, centroids, members))


def inliers(latents: Tensor, at_least: int, neighbours: int = 10, contamination: float = 0.1) -> np.ndarray:
    """Indices of the latents [N, C, h, w] that are no outliers (VLCP, before k-means; Breunig et al. 2000).

    LocalOutlierFactor of scikit-learn drops the fraction `contamination`; the `at_least` least outlying latents stay.
    """
    from sklearn.neighbors import LocalOutlierFactor
    if len(latents) <= max(at_least, 2):
        return np.arange(len(latents))
    detector = LocalOutlierFactor(min(neighbours, len(latents) - 1), contamination=contamination)
    kept = np.flatnonzero(detector.fit_predict(latents.flatten(1).numpy()) == 1)
    if len(kept) < at_least:
        kept = np.sort(np.argsort(-detector.negative_outlier_factor_, kind="stable")[:at_least])
    return kept


def find_prototypes(latents: Tensor, ipc: int, km_expand: int | None, seed: int, *, kmeans: str = "minibatch",
                    prototype: str = "centroid", outliers: str = "none") -> Prototypes:
    """The prototypes of one class's latents [N, C, h, w]: drop outliers, cluster, take centroids, medoids or members.

    `nearest` indexes all N latents.
    """
    kept = inliers(latents, ipc) if outliers == "lof" else np.arange(len(latents))
    choose = partial(random_members, seed=seed) if prototype == "member" else nearest_members
    found = cluster(latents[kept], ipc, km_expand, seed, kmeans, choose)
    nearest = torch.from_numpy(kept)[found.nearest]
    return replace(found, nearest=nearest, centroids=latents[nearest] if prototype in REAL_LATENTS else found.centroids)


def folder_name(dataset: str, ipc: int, km_expand: int | None, prototype: str = "centroid", outliers: str = "none") -> str:
    """The folder of a run: the original's name, with an ending for what the original cannot do."""
    return f"{dataset}-ipc{ipc}-kmexpand{km_expand or 1}" + ending(prototype, outliers, "-")


def ending(prototype: str | None, outliers: str | None, mark: str) -> str:
    """The ending of a folder's name for prototypes that are not plain centroids."""
    return (f"{mark}{prototype}" if prototype in REAL_LATENTS else "") + (f"{mark}lof" if outliers == "lof" else "")


def class_folder(label: int, name: str) -> str:
    """The zero-padded folder of class `label`: sorted order is class order."""
    return f"{label:05d}_{''.join(c if c.isalnum() or c in '-_.' else '_' for c in name)}"


def class_file(label: int, name: str) -> str:
    """The file of class `label`."""
    return class_folder(label, name) + ".safetensors"


def write_class(folder: Path, label: int, name: str, found: Prototypes) -> None:
    """Write one class's file."""
    tensors = {key: value for key, value in vars(found).items() if value is not None}
    write_tensors(Path(folder) / class_file(label, name), tensors)


def write_json_file(path: Path, classes: list[dict], found: Iterable[Prototypes]) -> None:
    """Write the original's file, {prompt: [IPC][C][h][w]} as JSON, class by class; it has neither names nor weights.

    Raises InputError when two classes share a prompt.
    """
    prompts = [entry["prompt"] for entry in classes]
    twice = next((prompt for prompt in prompts if prompts.count(prompt) > 1), None)
    if twice is not None:
        raise InputError(f"--format json: expected a prompt of its own for each class, found {twice} more than once")
    with atomic_path(path) as partial, open(partial, "w", encoding="utf-8") as file:
        for label, (prompt, each) in enumerate(zip(prompts, found, strict=True)):
            file.write(f"{', ' if label else '{'}{json.dumps(prompt)}: {json.dumps(each.centroids.tolist())}")
        file.write("}")


def read_prototypes(path: str | Path) -> tuple[list[dict], list[Prototypes], dict]:
    """Read a prototypes folder, or the original's JSON file {prompt: [IPC][C][h][w]}.

    Returns the classes (name, prompt), the prototypes of each, and the configuration of the run, with the digest of its
    autoencoder where the manifest has it.
    """
    path = Path(path)
    if path.suffix == ".json":
        return _read_json(path)
    manifest = read_manifest(path, "prototypes")
    names = [class_file(label, entry["name"]) for label, entry in enumerate(manifest["classes"])]
    prototypes, shape = [], (None,) * 4
    if missing := [name for name in names if name not in manifest["files"]]:
        raise InputError(f"{path}: expected a file for each class, found no {missing[0]} in manifest.json")
    for name in names:
        tensors = read_tensors(path / name)
        raise_first(f"{path / name}", class_problems(tensors, shape))
        prototypes.append(Prototypes(**tensors))
        shape = tuple(tensors["centroids"].shape)
    encoder = {"autoencoder": manifest["autoencoder"]} if "autoencoder" in manifest else {}
    return manifest["classes"], prototypes, manifest["config"] | encoder


def class_problems(tensors: dict[str, Tensor], shape: tuple = (None,) * 4) -> list[str]:
    """What is wrong with one class's tensors; `shape` is that of the centroids [IPC, C, h, w], None where any will do."""
    centroids = tensors.get("centroids")
    ipc = len(centroids) if centroids is not None and centroids.ndim else None
    problems = tensor_problems(tensors, {
        "centroids": Expected("float", shape), "sizes": Expected("number", (ipc,), 0), "inertia": Expected("float", (), 0),
        "nearest": Expected("integer", (ipc,), 0, optional=True), "skipped": Expected("integer", (None,), 0, optional=True)})
    if not problems and not (centroids.numel() and tensors["sizes"].sum() > 0):
        problems.append("expected at least one centroid and one image, found none")
    return problems


def _read_json(path: Path):
    content = read_json(path, LARGEST_JSON_BYTES)
    try:
        tensors = {prompt: torch.tensor(values, dtype=torch.float32) for prompt, values in content.items()}
    except (AttributeError, TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise InputError(f"{path}: expected prompts with nested lists [IPC][C][h][w], found {one_line(error)}") from None
    shapes = {tuple(tensor.shape) for tensor in tensors.values()}
    if len(shapes) != 1 or len(next(iter(shapes))) != 4:
        raise InputError(f"{path}: expected latents of one shape [IPC, C, h, w], found {sorted(shapes)[:3]}")
    classes = [{"name": prompt, "prompt": prompt} for prompt in tensors]
    found = [Prototypes(t, torch.ones(len(t)), torch.tensor(0.0)) for t in tensors.values()]
    for prompt, each in zip(tensors, found, strict=True):
        raise_first(f"{path}: {prompt!r}", class_problems({key: v for key, v in vars(each).items() if v is not None}))
    return classes, found, {}
