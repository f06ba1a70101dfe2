"""The stages of training the miniature as commands: `python -m miniature STAGE`.

build    write an untrained model folder: every file is there, but it draws noise
vae      train the VAE (checkpoints in build/miniature; resumes where it stopped)
words    train an imported model's text encoders on the words of the palette
base     train the text encoders and the UNet on that VAE's latents
decoder  train the VAE's decoder further, on fixed latents
export   write the model folder from the checkpoints
import   load the exported model into an empty state, so that base continues from it with a new learning rate
adapters train the LoRA and the tokens on the exported base, into the same folder
pictures draw 20 pictures with captions that none of these has seen, to try `tilemix train` on, into build/my-tile
"""

from __future__ import annotations

import argparse
import logging
import math
import sys
import time
from pathlib import Path

import torch

from miniature.architecture import build_miniature, load_tokenizers, write_model, write_tokenizers
from miniature.recipe import RECIPE_FILE, load_recipe
from miniature.stages.adapters import train_adapters, write_pictures
from miniature.stages.base import import_model, load_base, train_base
from miniature.stages.decoder import train_decoder
from miniature.stages.vae import measure_psnr, train_vae
from miniature.stages.words import train_words
from tilemix.errors import TilemixError, TrainingStoppedError
from tilemix.system.project import ROOT

logger = logging.getLogger(__name__)

EXAMPLE_FOLDER = ROOT / "build" / "my-tile"
EXAMPLE_PICTURES = 20


def main(arguments: list[str] | None = None) -> int:
    """Run one stage and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m miniature", description="Train the miniature.")
    parser.add_argument(
        "stage",
        choices=["build", "vae", "words", "base", "decoder", "export", "import", "adapters", "pictures"],
    )
    parser.add_argument("--recipe", type=Path, default=RECIPE_FILE, help="the recipe's JSON file")
    parser.add_argument(
        "--state", type=Path, default=ROOT / "build" / "miniature", help="checkpoints and photographs"
    )
    parser.add_argument("--model", type=Path, default=ROOT / "weights" / "miniature", help="the model folder")
    parser.add_argument("--threads", type=int, default=2, help="torch threads and drawing processes")
    parser.add_argument(
        "--wheel", type=Path, help="build: the open-clip-torch wheel to take the tokenizers from"
    )
    parser.add_argument(
        "--compile",
        action="store_true",
        help="base: compile the UNet (takes minutes and a C++ compiler; a step then takes 0.6 of the time)",
    )
    parser.add_argument(
        "--minutes",
        type=float,
        metavar="N",
        help="stop after the step in which they are over; the next run goes on from there",
    )
    options = parser.parse_args(arguments)
    until = math.inf if options.minutes is None else time.monotonic() + 60 * options.minutes

    def is_over() -> bool:
        return time.monotonic() >= until

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    torch.set_num_threads(options.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        recipe = load_recipe(options.recipe)
        if options.stage == "vae":
            vae = train_vae(recipe, options.state, workers=options.threads, device=device, is_over=is_over)
            logger.info(
                "VAE: %.2f dB, scaling factor %s", measure_psnr(vae, recipe, 32), vae.config["scaling_factor"]
            )
        elif options.stage == "decoder":
            vae = train_decoder(
                recipe, options.state, workers=options.threads, device=device, is_over=is_over
            )
            logger.info("decoder: %.2f dB on unseen photographs", measure_psnr(vae, recipe, 32))
        elif options.stage == "base":
            tokenizers = load_tokenizers(options.model)
            train_base(
                recipe,
                options.state,
                tokenizers,
                workers=options.threads,
                device=device,
                compiled=options.compile,
                is_over=is_over,
            )
        elif options.stage == "words":
            model = build_miniature(recipe)
            train_words(model, load_tokenizers(options.model), recipe, options.state, further=True)
        elif options.stage == "import":
            import_model(recipe, options.state, options.model)
        elif options.stage == "adapters":
            template = ROOT / "prompt_templates" / "miniature.json"
            for path in train_adapters(
                recipe, options.state, options.model, template, device=device, is_over=is_over
            ):
                logger.info("%s", path)
        elif options.stage == "pictures":
            first = recipe.adapters.photographs
            write_pictures(recipe, EXAMPLE_FOLDER, range(first, first + EXAMPLE_PICTURES))
            logger.info("%d pictures with captions in %s", EXAMPLE_PICTURES, EXAMPLE_FOLDER)
        elif options.stage == "export":
            model, step = load_base(recipe, options.state)
            write_model(options.model, model, recipe, options.model)
            logger.info(
                "%s: the base of step %d, the VAE at %.2f dB",
                options.model,
                step,
                measure_psnr(model.vae, recipe, 32),
            )
        else:
            tokenizers_from = options.model
            if options.wheel:
                tokenizers_from = options.state / "tokenizers"
                write_tokenizers(tokenizers_from, options.wheel)
            write_model(options.model, build_miniature(recipe), recipe, tokenizers_from)
    except TrainingStoppedError as stopped:
        logger.info("%s", stopped)
    except TilemixError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
