"""What `python -m misc.benchmark continual` measures, and its table."""

from misc.report.tables import NOT_RUN, Section

STEPS = 4           # of each variant in a round
BATCHES = 50        # of pixels alone in a round
TASKS, CLASSES, STREAM_IMAGES = 2, 10, 100
METHODS = ("finetune", "er", "agem", "derpp")
MOST_STEPS = {"agem": 2.1, "derpp": 3.1}    # times a fine-tune step
MOST_OVERHEAD, MOST_BATCH_MS, MOST_START_MS = 0.10, 1, 20


def measure(device, only: tuple[str, ...], repetitions: int, batch_size: int, size: int) -> dict:
    """The sections named in `only`: ResNet-18 with AdamW, batches of `batch_size` stream and as many memory images of `size`
    pixels, a stream of 100 images.
    """
    sections = {"overhead": overhead, "steps": steps, "pixels": pixels, "start": start}
    return {name: work(device, repetitions, batch_size, size) for name, work in sections.items() if name in only}


def overhead(device, repetitions: int, batch_size: int, size: int) -> dict:
    """A step of the loop under ER against the network's own forward, backward and optimiser on as many images."""
    import statistics

    import torch
    import torch.nn.functional as F

    from misc.measuring import interleaved, rounded
    learner, tasks = ready("er", device, batch_size, size)
    other, _ = ready("finetune", device, batch_size, size)
    network, optimizer = other.trainer.network, other.trainer.optimizer
    views = torch.randn(2 * batch_size, 3, size, size, device=device)
    labels = torch.arange(2 * batch_size, device=device) % CLASSES

    def bare():
        for _ in range(STEPS):
            optimizer.zero_grad(set_to_none=True)
            F.cross_entropy(network(views), labels).backward()
            optimizer.step()
    seconds = interleaved({"loop": lambda: take(learner, tasks[1]), "network": bare}, repetitions, "overhead")
    pairs = zip(seconds["loop"], seconds["network"], strict=True)
    return {"seconds": {name: rounded(spent) for name, spent in seconds.items()}, "steps": STEPS,
            "share": statistics.median(1 - network / loop for loop, network in pairs)}


def steps(device, repetitions: int, batch_size: int, size: int) -> dict:
    """A step of each method, and how many times a fine-tune step it takes."""
    from misc.measuring import interleaved, rounded, times_faster
    learners = {method: ready(method, device, batch_size, size) for method in METHODS}
    variants = {method: lambda learner=learner, tasks=tasks: take(learner, tasks[1])
                for method, (learner, tasks) in learners.items()}
    seconds = interleaved(variants, repetitions, "steps")
    return {"seconds": {name: rounded(spent) for name, spent in seconds.items()}, "steps": STEPS,
            "times_finetune": {name: times_faster(seconds["finetune"], spent) for name, spent in seconds.items()}}


def pixels(device, repetitions: int, batch_size: int, size: int) -> dict:
    """Milliseconds of one core for a batch's work beside the network: draw from memory, augment all, offer the new ones."""
    import statistics
    import time

    import torch

    from continual.streams import batches
    from misc.measuring import interleaved, rounded
    learner, tasks = ready("er", device, batch_size, size)
    trainer, buffer = learner.trainer, learner.buffer
    drawn = list(batches(tasks[1].train, range(BATCHES), batch_size, 0, 1))

    def work():
        for batch in drawn:
            images, _ = buffer.draw(batch_size, batch.rng)
            trainer.views(torch.cat([batch.images, images]), batch.rng)
            buffer.offer(batch.images, batch.labels, batch.rng)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        (seconds,) = interleaved({"pixels": work}, repetitions, "pixels", time.process_time).values()
    finally:
        torch.set_num_threads(threads)
    return {"seconds": rounded(seconds), "batches": BATCHES, "milliseconds": 1000 * statistics.median(seconds) / BATCHES}


def start(device, repetitions: int, batch_size: int, size: int) -> dict:
    """Milliseconds from a task's beginning to its first batch, and the worker processes there are then."""
    import multiprocessing
    import statistics

    from continual.streams import batches
    from misc.measuring import interleaved, rounded
    learner, tasks = ready("er", device, batch_size, size)

    def work():
        learner.begin(tasks[1], STEPS)
        next(batches(tasks[1].train, range(STEPS), batch_size, 0, 1))
    (seconds,) = interleaved({"start": work}, repetitions, "start").values()
    return {"seconds": rounded(seconds), "milliseconds": 1000 * statistics.median(seconds),
            "stream_images": len(tasks[1].train), "worker_processes": len(multiprocessing.active_children())}


def ready(method: str, device, batch_size: int, size: int):
    """A learner in its second task, with memory of the first and of what it has seen; returns it and its tasks."""
    from continual.streams import make_tasks
    images = noise_images(device, size)
    tasks = make_tasks(images, images, images, [(*range(0, CLASSES, 2),), (*range(1, CLASSES, 2),)])
    learner = new_learner(method, device, batch_size, size)
    for task in tasks:
        learner.begin(task, STEPS)
        take(learner, task)
        if task is tasks[0]:
            learner.end(task)
    return learner, tasks


def take(learner, task) -> None:
    """Some steps of the loop."""
    from continual.streams import batches
    for batch in batches(task.train, range(STEPS), learner.trainer.recipe.batch_size, 0, task.index):
        learner.step(batch)


def noise_images(device, size: int):
    """As many images as make each task's stream one of 100; speed does not depend on what they show."""
    import torch

    from matching.image_set import image_set
    labels = torch.arange(TASKS * STREAM_IMAGES) % CLASSES
    pixels = torch.randint(0, 256, (len(labels), 3, size, size), dtype=torch.uint8)
    names = [{"name": str(label), "prompt": str(label)} for label in range(CLASSES)]
    return image_set("noise", names, pixels, labels).to(device)


def new_learner(method: str, device, batch_size: int, size: int):
    """The method with a memory of twice a batch."""
    from continual.agem import AGEM
    from continual.buffer import Reservoir, TaskMemory
    from continual.er import ExperienceReplay
    from continual.learner import FineTune
    from continual.timing import Timers
    from continual.training import Recipe, Trainer
    from scripts.networks import seeded
    recipe = Recipe("adamw", lr=1e-3, weight_decay=5e-4, momentum=0.9, schedule="constant", batch_size=batch_size,
                    replay_batch_size=batch_size, min_scale=0.6, flip=0.5, bn_momentum=0.3)
    trainer = Trainer(seeded("resnet18", CLASSES, "imagenet", 0).to(device), recipe, 0, Timers(device))
    room, shape = 2 * batch_size, (3, size, size)
    if method == "finetune":
        return FineTune(trainer)
    if method == "agem":
        return AGEM(trainer, TaskMemory(room, shape, device))
    if method == "derpp":
        from continual.derpp import DarkExperienceReplay
        return DarkExperienceReplay(trainer, Reservoir(room, shape, device, logits=CLASSES), alpha=0.1, beta=0.5)
    return ExperienceReplay(trainer, Reservoir(room, shape, device))


def report(result: dict) -> list[Section]:
    """The table of a result."""
    from misc.benchmark_distillation import measured_on
    options = result["options"]
    says = (f"{measured_on(result)} ResNet-18, AdamW, {options['batch_size']} stream and {options['batch_size']} memory images "
            f"of {options['size']} pixels a step. Held equal: network, batch and optimiser. Not equal: what a method does in a "
            "step.")
    return [Section("Continual learning", says, ("What", "Here", "Aim"), tuple(rows_of(result["sections"])))]


def rows_of(sections: dict):
    """One row per aim, also of what was not run."""
    share = sections.get("overhead", {}).get("share")
    yield ("ER step beside forward, backward and optimiser (%)", NOT_RUN if share is None else f"{100 * share:.1f}",
           f"at most {100 * MOST_OVERHEAD:.0f}")
    times = sections.get("steps", {}).get("times_finetune", {})
    for method, name in (("agem", "A-GEM"), ("derpp", "DER++")):
        yield (f"{name} step, times a fine-tune step", f"{times[method]:.2f}" if method in times else NOT_RUN,
               f"at most {MOST_STEPS[method]}")
    for section, name, most in (("pixels", "Augmentation and buffer of a batch, one core (ms)", MOST_BATCH_MS),
                                ("start", "Start-up of a task with a stream of 100 images (ms)", MOST_START_MS)):
        spent = sections.get(section, {}).get("milliseconds")
        yield name, NOT_RUN if spent is None else f"{spent:.2f}", f"{'at most' if section == 'pixels' else 'under'} {most}"
    yield ("Worker processes then", str(sections["start"]["worker_processes"]) if "start" in sections else NOT_RUN, "0")
