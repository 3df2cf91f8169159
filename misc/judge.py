"""Are a checkpoint's images recognised as their class, and are they more than copies of training images?

    python -m misc.judge --distilled runs/quickstart/distilled/digits_ipc10_10_s0.3_g2.0_kmexpand1 \\
        --output misc/results/judge_digits.json

A classifier of the training split (a support-vector machine, or the network of --teacher) labels images generated from pure
noise under each class's prompt, and the images of distilled sets. Precision is the share of generated images near a real one,
recall that of unseen real images near a generated one, in the classifier's features (Kynkaanniemi et al. 2019, arXiv
1904.06991). Copies show in the distances to the nearest training image, compared with those of unseen real images: the test
images, or with --validation the training images held out.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from scripts.artefact import code_version, hardware, package_versions, read_manifest
from scripts.cli import Parser, Progress, dataset_flags, run
from scripts.files import write_json

PIXELS = 16  # side of the grey images for the support-vector machine and for distances
UNSEEN = "real images not trained on"     # test images, or with --validation the held-out ones
NEAR = 3     # an image is near another within the other's distance to its third neighbour


@dataclass(frozen=True)
class Judge:
    """A classifier: functions from images uint8 [N, 3, H, W] to arrays of labels [N] and of features [N, D]."""

    model: str
    names: Callable
    features: Callable


def parse_args():
    parser = Parser(__doc__)
    parser.add_dataset_flags()
    parser.add_checkpoint_flags()
    parser.add_argument("--teacher", default=None, metavar="DIR", help="folder of train_teacher: the classifier")
    parser.add_argument("--images", default=500, type=int, least=NEAR + 1,
                        help="images generated from pure noise, over all classes")
    parser.add_argument("--guidance_scale", "-g", default=2, type=float, least=1, help="of the images from noise")
    parser.add_argument("--num_inference_steps", default=20, type=int, least=1, help="denoising steps")
    parser.add_argument("--batch_size", default=50, type=int, least=1, help="images drawn at once")
    parser.add_argument("--seed", default=0, type=int, help="of the noise, and of the real images compared with")
    parser.add_argument("--distilled", nargs="*", default=[], help="distilled sets to judge as well")
    parser.add_argument("--output", default="runs/judge.json", help="result file")
    return parser.parse_args()


def main(args):
    import torch

    from distillation.datasets import load_splits
    from distillation.distilled_set import check_class_names
    from matching.image_set import distilled_images, real_images
    from misc.report.section import plain
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    train, test = (real_images(split, 32) for split in load_splits(**dataset_flags(args)))
    sets = {}
    for folder in args.distilled:
        distilled = distilled_images(folder)
        check_class_names(folder, distilled.classes, "the training images", train.classes)
        sets[folder if Path(folder).name in sets else Path(folder).name] = distilled.images, distilled.labels
    judge = network_judge(args.teacher, train, device) if args.teacher else fit_judge(train)
    sets = {"pure noise": draw(args, train.classes, device), **sets}
    known, like = small(train.images), some_of(train, args.images, args.seed)
    drawn = {"real training images": (like.images,), **{name: one for name, one in sets.items() if len(one[0]) > NEAR}}
    result = {
        "kind": "judge", "checkpoint": Path(args.diffusion_checkpoints_path).name,
        "judge": {"model": judge.model, "test_accuracy": score(judge, test.images, test.labels),
                  "train_images": len(train), "test_images": len(test)},
        "config": {name: getattr(args, name) for name in ("images", "guidance_scale", "num_inference_steps", "seed")},
        "recognised": {name: {"images": len(labels), "share": score(judge, images, labels)}
                       for name, (images, labels) in sets.items()},
        "manifold": {name: manifold(judge.features(images), judge.features(some_of(test, len(images), args.seed).images))
                     for name, (images, *_) in drawn.items()},
        "nearest_training_image": {name: quantiles(nearest(small(images), known)) for name, (images, *_) in
                                   {"real test images": (test.images,), **sets}.items()},
        "code": code_version(), "packages": package_versions(), "hardware": hardware(),
    }
    write_json(Path(args.output), result)
    print(plain(report(result)))
    print(f"written to {args.output}")


def report(result: dict) -> list:
    """What the judge recognised, precision and recall where they were measured, and distances to the training split."""
    from misc.report.section import NONE, Section
    distances, near = result["nearest_training_image"], result.get("manifold", {})
    recognised = {**result["recognised"],
                  "real test images": {"images": result["judge"]["test_images"], "share": result["judge"]["test_accuracy"]}}
    columns = (("Number", recognised, "images", "d", 1), ("Recognised (%)", recognised, "share", ".1f", 100),
               *((f"{name.capitalize()} (%)", near, name, ".1f", 100) for name in ("precision", "recall") if near),
               ("Distance, minimum", distances, "minimum", ".3f", 1), ("5 % quantile", distances, "5 % quantile", ".3f", 1),
               ("Median", distances, "median", ".3f", 1))
    rows = [(UNSEEN if name == "real test images" else name,
             *(f"{scale * values[name][key]:{form}}" if name in values else NONE for _, values, key, form, scale in columns))
            for name in dict.fromkeys([*result["recognised"], *near, "real test images"])]
    says = (f"A judge ({result['judge']['model']}, trained on the training split) classifies what the checkpoint draws. "
            "Distances are root-mean-square pixel distances (0 to 1) to the nearest training image; a copy has 0.")
    if near:
        says += (f" Precision is the fraction of drawn images near one of the {UNSEEN}, recall that of these near a drawn one, "
                 "in the judge's features, with as many real images as drawn ones, or all where there are fewer.")
    return [Section("Judge", says, ("Images", *(name for name, *_ in columns)), tuple(rows))]


def small(images):
    """uint8 [N, 3, H, W] -> grey float array [N, 16 * 16] in [0, 1]."""
    import torch.nn.functional as F
    return F.adaptive_avg_pool2d(images.float().mean(1, keepdim=True) / 255, PIXELS).flatten(1).numpy()


def fit_judge(train) -> Judge:
    from sklearn.svm import SVC
    model = SVC(C=10, gamma="scale").fit(small(train.images), train.labels.cpu().numpy())
    return Judge("scikit-learn SVC, RBF kernel", lambda images: model.predict(small(images)), small)


def network_judge(folder: str, train, device) -> Judge:
    """A teacher's network at its own resolution; its features are the inputs of its last linear layer."""
    import torch

    from continual.task_arithmetic import head_of, inputs_of
    from distillation.images import resized
    from matching.teachers import trained_teacher
    from scripts.networks import predict
    size = train.images.shape[-1]
    network = trained_teacher(folder, train, size).to(device)

    def logits(images):
        return predict(network, resized(images.to(device), size))

    def names(images):
        return logits(images).argmax(1).cpu().numpy()

    def features(images):
        with inputs_of(head_of(network)) as found:
            logits(images)
        return torch.cat(found).float().cpu().numpy()
    return Judge(f"{read_manifest(folder, 'teacher')['config']['arch']} of matching.train_teacher", names, features)


def score(judge: Judge, images, labels) -> float:
    return float((judge.names(images) == labels.cpu().numpy()).mean())


def some_of(images, count: int, seed: int):
    """`count` random rows of an image set, or all."""
    import torch

    from scripts.randomness import generator_for
    return images.rows(torch.randperm(len(images), generator=generator_for(seed, "judge-rows"))[:count].to(images.device))


def manifold(drawn, real) -> dict[str, float]:
    """Precision and recall of generated features [N, D] against real ones [M, D], and N."""
    return {"precision": share_near(drawn, real), "recall": share_near(real, drawn), "images": len(drawn)}


def share_near(points, others) -> float:
    """The share of `points` within the distance of any of `others` to its own neighbour number NEAR."""
    from sklearn.metrics import pairwise_distances_chunked
    from sklearn.neighbors import NearestNeighbors
    reach = NearestNeighbors(n_neighbors=NEAR).fit(others).kneighbors()[0][:, -1]   # a point is not its own neighbour
    return sum(int((part <= reach).any(1).sum()) for part in pairwise_distances_chunked(points, others)) / len(points)


def draw(args, classes, device):
    """Images uint8 [N, 3, H, W] generated from pure noise, and their labels."""
    import torch

    from distillation.checkpoints import load_pipeline
    from distillation.synthesis import Denoising, latent_shape, synthesize
    from scripts.pipeline_stable_diffusion_latents2img import StableDiffusionLatents2ImgPipeline
    pipeline = load_pipeline(StableDiffusionLatents2ImgPipeline, args.diffusion_checkpoints_path, device, args.dtype,
                             args.revision)
    prompts, negative = pipeline.embed([entry["prompt"] for entry in classes]), pipeline.embed([""])
    labels = torch.arange(args.images) % len(classes)
    images = []
    for part in Progress(torch.arange(args.images).split(args.batch_size), desc="generate", unit="batch"):
        images.append(synthesize(pipeline, torch.zeros(len(part), *latent_shape(pipeline)), prompts[labels[part]], negative,
                                 [("judge", int(place)) for place in part], args.seed,
                                 Denoising(1.0, args.guidance_scale, args.num_inference_steps)))
    return torch.cat(images), labels


def nearest(images, known):
    """Root-mean-square pixel distance (in [0, 1]) of each image [N, P] to the nearest of `known` [M, P]."""
    from sklearn.neighbors import NearestNeighbors
    return NearestNeighbors(n_neighbors=1).fit(known).kneighbors(images)[0][:, 0] / PIXELS


def quantiles(distances) -> dict:
    import numpy as np
    low, fifth, median = np.quantile(distances, [0, 0.05, 0.5]).tolist()
    return {"minimum": low, "5 % quantile": fifth, "median": median}


if __name__ == "__main__":
    run(parse_args, main)
