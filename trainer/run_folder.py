"""What stands in a run folder: whether this run goes on there, may begin there, or neither."""

from pathlib import Path

import yaml

from data_tools import aside, lock
from data_tools.corpus import Corpus
from data_tools.errors import UserError
from trainer.checkpoint import Checkpoint, checkpoint_paths, newest
from trainer.recipe import Recipe

RESULTS = ("model", "metrics.jsonl", "tensorboard")
"""What a new run would delete or overwrite."""


def refuse_file(folder: Path) -> None:
    """Raise UserError when a file stands where the run folder, or a folder above it, would be."""
    for path in (folder, *folder.absolute().parents):
        if path.exists() and not path.is_dir():
            raise UserError(f"--output-dir {folder}: expected a folder, found a file{'' if path == folder else f', {path}'}; name another")


def find(recipe: Recipe, corpus: Corpus, resume: str, init_from: Path | None) -> tuple[Checkpoint | None, list[str]]:
    """The newest good checkpoint of this run, None where it has not begun; and what is wrong with newer ones. Reads only.

    resume: auto, never or must. init_from: the checkpoint whose weights the run begins from. Raises UserError when the folder holds another
    run, or one that cannot go on, or results whose checkpoints are gone.
    """
    folder = recipe.output_dir
    found, problems = newest(folder)
    if checkpoint_paths(folder) and resume == "never":
        raise UserError(f"--resume never: {folder} holds a run already; choose another --output-dir or --resume auto")
    if resume == "must" and (problems or found is None):
        raise UserError(f"--resume must: {problems[0] if problems else f'{folder} holds no checkpoint'}")
    if found is None and problems:
        raise UserError(f"{folder}: none of its checkpoints is good; choose another --output-dir, or remove it to start anew")
    if found is None:
        for name in RESULTS:
            if (folder / name).exists():
                raise UserError(f"{folder}: holds {name}, but no checkpoint to go on from; choose another --output-dir, or remove it")
        return None, problems
    refuse_other_run(recipe, corpus, found)
    begun = found.state["surgery"].get("initialised_from", f"surgery on {recipe.seed_model}")
    if init_from and Path(begun.rpartition(", step ")[0]).resolve() != init_from.resolve():
        raise UserError(f"--init-from {init_from}: {folder} holds a run that began from {begun}; choose another --output-dir")
    return found, problems


def claim(recipe: Recipe) -> None:
    """Make the folder this run's, in which it has not begun: hold it, and write the recipe.

    Raises UserError when another process has begun there since we looked.
    """
    lock.hold(recipe.output_dir)
    if checkpoint_paths(recipe.output_dir):
        raise UserError(f"{recipe.output_dir}: another process has begun a run there meanwhile; give the command again to go on with it")
    write_recipe(recipe)


def write_recipe(recipe: Recipe) -> None:
    """RUN/recipe.yaml, every entry resolved."""
    text = yaml.safe_dump(recipe.as_dict(), sort_keys=False, allow_unicode=True)
    aside.write_text(recipe.output_dir / "recipe.yaml", text)


def refuse_other_run(recipe: Recipe, corpus: Corpus, checkpoint: Checkpoint) -> None:
    """Raise UserError when the checkpoint is of another recipe or corpus, saying what differs."""
    checkpoint.expect_post_training()
    before, now = Recipe.model_validate(checkpoint.state["recipe"]).identity(), recipe.identity()
    differing = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    differences = [f"  {key}: {before.get(key, 'none')} there, {now.get(key, 'none')} now" for key in differing]
    if checkpoint.state["corpus_fingerprint"] != corpus.fingerprint:
        differences.append(f"  corpus: fingerprint {checkpoint.state['corpus_fingerprint'][:16]} there, {corpus.fingerprint[:16]} now")
    if differences:
        raise UserError(
            f"{recipe.output_dir} holds a run of another recipe or corpus; choose another --output-dir, or give back what it had:\n"
            + "\n".join(differences)
        )


def refuse_other_model(recipe: Recipe, corpus: Corpus, shapes: dict[str, tuple[int, ...]], source: Checkpoint) -> None:
    """Raise UserError when the weights of `source` do not fit the recipe's model, or its embeddings another tokenizer's pieces.

    shapes: of that model, by parameter name.
    """
    source.expect_post_training()
    if source.state["tokenizer_sha256"] != corpus.tokenizer_sha256:
        raise UserError(
            f"--init-from {source.path}: it was trained with another tokenizer than that of corpus {recipe.corpus}; "
            "prepare the corpus with --tokenizer, giving the tokenizer folder of the corpus it was made with"
        )
    differing = [name for name in {*shapes, *source.shapes} if shapes.get(name) != source.shapes.get(name)]
    if differing:
        name = min(differing)
        raise UserError(
            f"--init-from {source.path}: its weights are not this recipe's model; {len(differing)} tensors differ, e.g. {name}: "
            f"{source.shapes.get(name, 'missing')} there, {shapes.get(name, 'missing')} now; give the surgery settings it was made with"
        )
    theirs = source.state["recipe"]["surgery"]["itl"]
    if theirs != recipe.surgery.itl:  # "input" and "output" have the same shapes
        raise UserError(f"--init-from {source.path}: surgery.itl is {theirs} there, {recipe.surgery.itl} now; give that")
