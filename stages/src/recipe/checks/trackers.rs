//! Trackers: what is named exists, and what is said of one has it switched on.

use super::Facts;
use crate::track::{TrackerName, WandbMode, address, trackers};

pub(super) fn check(facts: &mut Facts<'_>) {
    let recipe = facts.recipe;
    let named = recipe.report_to.as_ref().map(|list| list.0.as_slice()).unwrap_or_default();
    if named.len() > 1 && named.contains(&TrackerName::None) && facts.sound(&["report_to"]) {
        let message = "`report_to` names `none` beside others".to_string();
        facts.error("unfit-value", "report_to", message, Some("report_to: none, or the others alone".to_string()));
    }
    let switches = [
        ("use_tensorboard", recipe.use_tensorboard),
        ("use_mlflow", recipe.use_mlflow),
        ("use_wandb", recipe.use_wandb),
    ];
    for (key, switch) in switches {
        if switch == Some(true) && named.contains(&TrackerName::None) {
            facts.conflict(["report_to", key], "`none` switches every tracker off", key);
        }
    }
    let uri = recipe.mlflow_tracking_uri.as_deref();
    if uri.is_some_and(|uri| address(uri, facts.project).is_none()) && facts.sound(&["mlflow_tracking_uri"]) {
        // The address may hold a password, and is not repeated.
        let message =
            "`mlflow_tracking_uri` is neither an HTTP address nor a folder; databases and hosted services are \
                       written to through `mlflow server`"
                .to_string();
        let suggestion = Some("http://localhost:5000".to_string());
        facts.error("unfit-value", "mlflow_tracking_uri", message, suggestion);
    }
    let told = trackers(recipe);
    if !told.contains(&TrackerName::Mlflow) {
        for key in ["mlflow_tracking_uri", "mlflow_run_name"] {
            if facts.written(key) && facts.sound(&[key, "report_to", "use_mlflow"]) {
                let message = format!("`{key}` does nothing: MLflow is not among the trackers");
                facts.warning("no-effect", key, message, Some("report_to: mlflow".to_string()));
            }
        }
    }
    let disabled = recipe.use_wandb == Some(false) || recipe.wandb_mode == Some(WandbMode::Disabled);
    if !told.contains(&TrackerName::Wandb) && !disabled {
        for key in ["wandb_mode", "wandb_entity", "wandb_name", "wandb_run_id"] {
            if facts.written(key) && facts.sound(&[key, "report_to", "use_wandb", "wandb_project"]) {
                let message = format!("`{key}` does nothing: Weights & Biases are not among the trackers");
                facts.warning("no-effect", key, message, Some("wandb_project: NAME".to_string()));
            }
        }
    }
}
