"""Several processes, one output folder: who does which unit."""


def my_share(units: list, accelerator) -> list:
    """The units of this process, dealt out in turn; each process writes only its own."""
    return units[accelerator.process_index::accelerator.num_processes]


def require_one_process(accelerator, command: str) -> None:
    """Raise InputError under `accelerate launch` with several processes, for commands that train on one device."""
    from distillation.entry import InputError
    if accelerator.num_processes > 1:
        raise InputError(f"{command}: expected one process, found {accelerator.num_processes}; start it without a launcher")
