"""Prototypes: the k-means centroids of one class's latents, and the folder that keeps them."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from sklearn.cluster import KMeans, MiniBatchKMeans
from threadpoolctl import threadpool_limits
from torch import Tensor

from distillation.entry import InputError
from distillation.manifest import read_json, read_manifest, read_tensors

LEAST_BATCH = 1024  # scikit-learn's own default; batches of km_expand * ipc alone can be as small as the clusters are many


@dataclass(frozen=True)
class Prototypes:
    """One class's `centroids` [IPC, C, h, w] (scaled latents), cluster `sizes` [IPC] in images, `inertia` (squared error)."""

    centroids: Tensor
    sizes: Tensor
    inertia: Tensor

    @property
    def weights(self) -> Tensor:
        """Each cluster's share of the class [IPC], summing to 1."""
        return self.sizes / self.sizes.sum()


def cluster(latents: Tensor, ipc: int, km_expand: int, seed: int, kmeans: str = "minibatch") -> Prototypes:
    """Cluster the latents [N, C, h, w] of one class into `ipc` prototypes with scikit-learn (D4M, section 3.2).

    `minibatch` uses batches of km_expand * ipc samples, at least 1,024; `full` is k-means proper. Every latent takes part.
    Raises ValueError when there are fewer latents than prototypes.
    """
    if len(latents) < ipc:
        raise ValueError(f"expected at least {ipc} latents, found {len(latents)}")
    flat = latents.flatten(1).numpy()
    estimator = KMeans(ipc, random_state=seed, n_init="auto") if kmeans == "full" else MiniBatchKMeans(
        ipc, random_state=seed, n_init="auto", batch_size=max(km_expand * ipc, LEAST_BATCH))
    with threadpool_limits(1):  # sums in a fixed order: the same prototypes whatever the number of cores
        estimator.fit(flat)
    centroids = torch.from_numpy(estimator.cluster_centers_.astype(np.float32)).reshape(ipc, *latents.shape[1:])
    sizes = torch.bincount(torch.from_numpy(estimator.labels_.astype(np.int64)), minlength=ipc)
    return Prototypes(centroids, sizes, torch.tensor(float(estimator.inertia_)))


def class_folder(label: int, name: str) -> str:
    """The zero-padded name under which class `label` lies, so that sorted order is class order."""
    return f"{label:05d}_{''.join(c if c.isalnum() or c in '-_.' else '_' for c in name)}"


def class_file(label: int, name: str) -> str:
    """The file of class `label` in a prototypes folder."""
    return class_folder(label, name) + ".safetensors"


def read_prototypes(path: str | Path) -> tuple[list[dict], list[Prototypes], dict]:
    """Read a prototypes folder, or the original's single JSON file {prompt: [IPC][C][h][w]}.

    Returns classes (name, prompt), prototypes per class in that order, and the configuration they were made with.
    """
    path = Path(path)
    if path.suffix == ".json":
        return _read_json(path)
    manifest = read_manifest(path, "prototypes")
    prototypes = [Prototypes(**read_tensors(path / class_file(label, entry["name"])))
                  for label, entry in enumerate(manifest["classes"])]
    return manifest["classes"], prototypes, manifest["config"]


def _read_json(path: Path):
    content = read_json(path)
    try:
        tensors = {prompt: torch.tensor(values, dtype=torch.float32) for prompt, values in content.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise InputError(f"{path}: expected prompts with nested lists [IPC][C][h][w], found {error}") from None
    shapes = {tuple(tensor.shape) for tensor in tensors.values()}
    if len(shapes) != 1 or len(next(iter(shapes))) != 4:
        raise InputError(f"{path}: expected latents of one shape [IPC, C, h, w], found {sorted(shapes)[:3]}")
    classes = [{"name": prompt, "prompt": prompt} for prompt in tensors]
    return classes, [Prototypes(t, torch.ones(len(t)), torch.tensor(0.0)) for t in tensors.values()], {}
