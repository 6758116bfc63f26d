//! Other tools' configurations, in their own spelling, become recipes that mean the same.

use serde_json::{Value, json};

use super::harness::{Project, Said};

/// Imports, insists that the result is valid, and returns it as a tree.
fn imported(project: &Project, from: &str, rest: &[&str]) -> (Value, Said) {
    let said = project.pipe(&[&["recipes", "import", "--from", from], rest].concat());
    assert_eq!(said.code, 0, "{}", said.stderr);
    // What was said names the project's folder in short; the recipe needs it in full.
    let root = project.path("").canonicalize().unwrap();
    project.write("imported.yml", &said.stdout.replace("$ROOT", root.to_str().unwrap().trim_end_matches('/')));
    let valid = project.pipe(&["validate", "imported.yml"]);
    assert_eq!(valid.code, 0, "{}\n{}", valid.stderr, said.stdout);
    (serde_yaml::from_str(&said.stdout).unwrap(), said)
}

fn has(recipe: &Value, expected: &Value) {
    for (key, value) in expected.as_object().unwrap() {
        assert_eq!(&recipe[key], value, "{key}");
    }
}

const LLAMA_FACTORY: &str = "\
### model
model_name_or_path: org/base-8b
trust_remote_code: true
quantization_bit: 4
quantization_method: bnb
double_quantization: false
### method
stage: sft
do_train: true
finetuning_type: lora
lora_rank: 16
lora_target: q_proj,v_proj
### dataset
dataset: own,talk
template: llama3
cutoff_len: 1024
val_size: 0.1
### train
per_device_train_batch_size: 2
gradient_accumulation_steps: 8
learning_rate: 1.0e-4
num_train_epochs: 3.0
lr_scheduler_type: cosine
warmup_ratio: 0.1
eval_strategy: steps
eval_steps: 50
ddp_timeout: 180000000
brand_new_switch: 7
";

const DATASET_INFO: &str = r#"{
  "own": {"file_name": "own.json"},
  "talk": {"hf_hub_url": "org/talk", "formatting": "sharegpt", "columns": {"messages": "turns", "tools": "functions"},
           "tags": {"role_tag": "who", "content_tag": "what", "user_tag": "person", "assistant_tag": "model"}}
}"#;

#[test]
fn llama_factory_by_its_dataset_list() {
    let project = Project::new();
    project.write("lf/examples/train.yaml", LLAMA_FACTORY);
    project.write("lf/data/dataset_info.json", DATASET_INFO);
    project.write("lf/data/own.json", r#"[{"instruction": "a", "input": "", "output": "b"}]"#);
    let (recipe, said) = imported(&project, "llama-factory", &["lf/examples/train.yaml"]);
    has(
        &recipe,
        &json!({
            "base_model": "org/base-8b", "load_in_4bit": true, "adapter": "qlora", "lora_r": 16, "lora_alpha": 32,
            "lora_target_modules": ["q_proj", "v_proj"], "chat_template": "llama3", "sequence_len": 1024,
            "excess_length_strategy": "truncate", "val_set_size": 0.1, "micro_batch_size": 2,
            "gradient_accumulation_steps": 8, "learning_rate": 1e-4, "num_epochs": 3, "lr_scheduler": "cosine",
            "warmup_ratio": 0.1, "eval_steps": 50, "gradient_checkpointing": true, "optimizer": "adamw_torch",
        }),
    );
    assert_eq!(recipe["bnb_config_kwargs"]["bnb_4bit_use_double_quant"], false);
    assert_eq!(recipe["datasets"][0]["type"], "alpaca:chat_template");
    assert!(recipe["datasets"][0]["path"].as_str().unwrap().ends_with("work/lf/data/own.json"));
    has(
        &recipe["datasets"][1],
        &json!({
            "path": "org/talk", "type": "chat_template", "field_messages": "turns", "field_tools": "functions",
            "message_property_mappings": {"role": "who", "content": "what"},
        }),
    );
    assert_eq!(recipe["datasets"][1]["roles"]["assistant"], json!(["model", "function_call"]));
    assert!(said.stderr.contains("brand_new_switch: 7: there is no counterpart here"), "{}", said.stderr);
    assert!(said.stdout.contains("# - ") && said.stdout.contains("ddp_timeout: 180000000"), "{}", said.stdout);
}

#[test]
fn llama_factory_says_what_it_will_not_do() {
    let project = Project::new();
    let refused = |text: &str, word: &str| {
        project.write("c.yaml", text);
        let said = project.pipe(&["recipes", "import", "--from", "llama-factory", "c.yaml"]);
        assert_eq!(said.code, 2, "{}", said.stdout);
        assert!(said.stderr.contains(word) && said.stdout.is_empty(), "{}", said.stderr);
    };
    refused("model_name_or_path: a/b\nstage: dpo\ndataset: x\n", "preference optimisation");
    refused("model_name_or_path: a/b\nexport_dir: out\n", "pipe merge");
    refused("compute_environment: LOCAL_MACHINE\n", "model_name_or_path");
    refused("model_name_or_path: a/b\nstage: sft\ndataset: x/y\nlearning_rate: fast\n", "`learning_rate` is `fast`");
    refused("model: [\n", "c.yaml:");
    project.write("c.yaml", LLAMA_FACTORY);
    project.write("there.yml", "base_model: mine\n");
    let args = ["recipes", "import", "--from", "llama-factory", "c.yaml", "--output", "there.yml"];
    assert_eq!(project.pipe(&args).code, 2);
    assert_eq!(project.read("there.yml"), "base_model: mine\n");
    assert_eq!(project.pipe(&[&args[..], &["--force"]].concat()).code, 0);
    assert!(project.read("there.yml").contains("base_model: org/base-8b"));
}

const XTUNER: &str = "\
# A configuration
from torch.optim import AdamW
pretrained_model_name_or_path = 'org/' \\
    'small-model'
prompt_template = PROMPT_TEMPLATE.internlm2_chat
max_length = 1024
sequence_parallel_size = 2
accumulative_counts = 8
accumulative_counts *= sequence_parallel_size
max_epochs = 2
lr = 3e-4
warmup_ratio = 0.05
evaluation_inputs = ['Who are you?']
model = dict(
    type=SupervisedFinetune,
    llm=dict(
        type=AutoModelForCausalLM.from_pretrained,
        pretrained_model_name_or_path=pretrained_model_name_or_path,
        torch_dtype=torch.float16,
        quantization_config=dict(type=BitsAndBytesConfig, load_in_4bit=True, bnb_4bit_use_double_quant=True)),
    lora=dict(type=LoraConfig, r=64, lora_alpha=16, lora_dropout=0.1, bias='none'))
sql = dict(
    type=process_hf_dataset,
    dataset=dict(type=load_dataset, path='org/sql'),
    dataset_map_fn=sql_map_fn,
    template_map_fn=dict(type=template_map_fn_factory, template=prompt_template),
    pack_to_max_length=True)
train_dataset = dict(type=ConcatDataset, datasets=[sql])
train_dataloader = dict(batch_size=1, dataset=train_dataset)
batch_size = 1
optim_wrapper = dict(
    optimizer=dict(type=AdamW, lr=lr, betas=(0.9, 0.95), weight_decay=0.01),
    clip_grad=dict(max_norm=1), accumulative_counts=accumulative_counts)
train_cfg = dict(type=TrainLoop, max_epochs=max_epochs)
if True:
    max_epochs = 99
";

#[test]
fn xtuner_is_read_and_never_run() {
    let project = Project::new();
    project.write("c.py", XTUNER);
    let (recipe, said) = imported(&project, "xtuner", &["c.py"]);
    has(
        &recipe,
        &json!({
            "base_model": "org/small-model", "load_in_4bit": true, "adapter": "qlora", "lora_r": 64, "lora_alpha": 16,
            "lora_dropout": 0.1, "lora_target_linear": true, "sequence_len": 1024, "sample_packing": true,
            "micro_batch_size": 1, "gradient_accumulation_steps": 16, "num_epochs": 2, "learning_rate": 3e-4,
            "warmup_ratio": 0.05, "weight_decay": 0.01, "adam_beta2": 0.95, "max_grad_norm": 1,
        }),
    );
    assert_eq!(recipe["eval"]["samples"], json!(["Who are you?"]));
    assert_eq!(recipe["special_tokens"]["eos_token"], "<|im_end|>");
    let kind = &recipe["datasets"][0]["type"];
    assert_eq!((&kind["field_instruction"], &kind["field_input"]), (&json!("context"), &json!("question")));
    let prompt = "<|im_start|>user\n{instruction}\n{input}<|im_end|>\n<|im_start|>assistant\n";
    assert_eq!(kind["format"], prompt);
    assert!(said.stderr.contains("sequence_parallel_size = 2"), "{}", said.stderr);
    project.write("c.py", "model = dict(\n  type=X\n");
    let said = project.pipe(&["recipes", "import", "--from", "xtuner", "c.py"]);
    assert!(said.code == 2 && said.stderr.contains("c.py:1:13"), "{}", said.stderr);
}

const TORCHTUNE: &str = "\
# tune download org/base-7b --output-dir /tmp/base-7b
output_dir: /tmp/out
model:
  _component_: torchtune.models.llama2.qlora_llama2_7b
  lora_attn_modules: ['q_proj', 'v_proj', 'output_proj']
  apply_lora_to_mlp: True
  lora_rank: 8
  lora_alpha: 16
tokenizer:
  _component_: torchtune.models.llama2.llama2_tokenizer
  path: /tmp/base-7b/tokenizer.model
  max_seq_len: 512
checkpointer:
  _component_: torchtune.training.FullModelHFCheckpointer
  checkpoint_dir: /tmp/base-7b
  output_dir: ${output_dir}
dataset:
  _component_: torchtune.datasets.alpaca_cleaned_dataset
  packed: True
optimizer:
  _component_: torch.optim.AdamW
  fused: True
  lr: 3e-4
lr_scheduler:
  _component_: torchtune.training.lr_schedulers.get_cosine_schedule_with_warmup
  num_warmup_steps: 100
loss:
  _component_: torchtune.modules.loss.LinearCrossEntropyLoss
batch_size: 2
epochs: 1
max_steps_per_epoch: 30
gradient_accumulation_steps: 8
clip_grad_norm: null
dtype: bf16
enable_activation_checkpointing: True
profiler:
  output_dir: ${output_dir}/profiling
";

#[test]
fn torchtune_with_its_components_defaults() {
    let project = Project::new();
    project.write("c.yaml", TORCHTUNE);
    let (recipe, _) = imported(&project, "torchtune", &["c.yaml"]);
    has(
        &recipe,
        &json!({
            "base_model": "org/base-7b", "load_in_4bit": true, "adapter": "qlora", "lora_r": 8, "lora_alpha": 16,
            "lora_target_modules": ["q_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
            "sequence_len": 512, "sample_packing": true, "micro_batch_size": 2, "gradient_accumulation_steps": 8,
            "max_steps": 30, "learning_rate": 3e-4, "weight_decay": 0.01, "lr_scheduler": "cosine", "warmup_steps": 100,
            "max_grad_norm": 0, "gradient_checkpointing": true, "output_dir": "/tmp/out",
        }),
    );
    has(&recipe["datasets"][0], &json!({"path": "yahma/alpaca-cleaned", "type": "alpaca", "train_on_inputs": true}));
}

#[test]
fn scripts_are_read_by_their_flags() {
    let project = Project::new();
    let flags =
        ["--", "python", "finetune.py", "--base_model=org/llama", "--batch_size", "128", "--micro_batch_size", "8"];
    let more = ["--lora_target_modules=[q_proj,k_proj]", "--val_set_size", "0"];
    let (recipe, _) = imported(&project, "alpaca-lora", &[&flags[..], &more].concat());
    has(
        &recipe,
        &json!({
            "base_model": "org/llama", "micro_batch_size": 8, "gradient_accumulation_steps": 16, "num_epochs": 3,
            "learning_rate": 3e-4, "sequence_len": 256, "train_on_inputs": true, "warmup_steps": 100,
            "lora_target_modules": ["q_proj", "k_proj"], "lora_r": 8, "val_set_size": null,
        }),
    );
    let flags =
        ["--", "trl", "sft", "--model_name_or_path", "org/qwen2-small", "--dataset_name", "org/chats", "--use_peft"];
    let more =
        ["--load_in_4bit", "--learning_rate", "2.0e-4", "--packing", "--eos_token", "<|im_end|>", "--push_to_hub"];
    let (recipe, said) = imported(&project, "trl", &[&flags[..], &more].concat());
    has(
        &recipe,
        &json!({
            "adapter": "qlora", "lora_r": 16, "lora_alpha": 32, "lora_dropout": 0.05, "micro_batch_size": 8,
            "lora_target_modules": ["q_proj", "v_proj"], "learning_rate": 2e-4, "num_epochs": 3, "sequence_len": 1024,
            "sample_packing": true, "lr_scheduler": "linear", "special_tokens": {"eos_token": "<|im_end|>"},
        }),
    );
    assert_eq!(recipe["bnb_config_kwargs"]["bnb_4bit_use_double_quant"], false);
    assert!(said.stderr.contains("push_to_hub"), "{}", said.stderr);
    let said = project.pipe(&["recipes", "import", "--from", "trl", "--", "trl", "dpo", "--model_name_or_path", "a/b"]);
    assert!(said.code == 2 && said.stderr.contains("`dpo`"), "{}", said.stderr);
}
