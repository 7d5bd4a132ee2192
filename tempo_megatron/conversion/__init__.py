"""Maps between Hugging Face models and Megatron models: the single source of tensor names and shapes.

The trainer, the planner, the generator's weight updates and `checkpoints_convert` all read these maps. The package
imports torch and transformers, but no trainer. In reading order:

- `families/`: one small file a model family. It declares what no config.json says: name, norms, biases, RoPE types.
- `decoder.py`: `Family` turns a config.json into `BackboneSettings`. `policy_mappings` and `critic_mappings` list every
  tensor of a model: here the **name** of a tensor is decided, in Hugging Face and in Megatron.
- `mapping.py`: the kinds of mapping, for example `QkvMapping`. Here the **shape** and the layout of a tensor are
  decided: how rows are permuted, concatenated and padded, and how tensor parallelism splits them.
- `experts.py`: the settings of experts, and tensors on disk that join all experts of a layer.
- `rope.py`: rotary position embeddings and their scaling.
- `critics.py`: names of value heads, a fresh value head, and the config.json of an exported critic.
- `rows.py`: tensors that arrive as blocks of rows, because the whole is too large to send at once.
- `hf_config.py`: fills in the keys that a config.json omits, through transformers' own config class.
- `source_files.py`, `hf_files.py`: which files of a model directory count, and how tensors are read and written.
- `source.py`: `open_source` checks a model directory and lists every problem. All commands use it.
- `errors.py`: `ConversionError`.

To add a family, write one file in `families/` and add its name to the registry in `families/__init__.py`.
`docs/families.md` describes the fields and the tests.
"""
