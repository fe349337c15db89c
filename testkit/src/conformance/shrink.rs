//! Smaller variants of a scenario that failed. Knows the form of scenario files,
//! not what a step means.

use serde_json::{Map, Value, json};

/// Variants with something taken away, the largest cuts first.
#[must_use]
pub fn smaller(scenario: &Value) -> Vec<Value> {
    let steps = scenario["steps"].as_array().cloned().unwrap_or_default();
    let mut variants = Vec::new();
    let mut cut = steps.len() / 2;
    while cut > 0 {
        for start in (0..steps.len()).step_by(cut) {
            let mut variant = scenario.clone();
            variant["steps"] = steps
                .iter()
                .enumerate()
                .filter(|(i, _)| *i < start || *i >= start + cut)
                .map(|(_, s)| s.clone())
                .collect();
            variants.push(variant);
        }
        cut /= 2;
    }
    for name in ["queueOptions", "workerOptions"] {
        let without = scenario[name].as_object().map(without_one).unwrap_or_default();
        variants.extend(without.into_iter().map(|options| with(scenario, name, options)));
    }
    for (i, step) in steps.iter().enumerate() {
        variants.extend(smaller_step(step).into_iter().map(|step| {
            let mut variant = scenario.clone();
            variant["steps"][i] = step;
            variant
        }));
    }
    variants
}

/// A step with one of its jobs, flow nodes or options less.
fn smaller_step(step: &Value) -> Vec<Value> {
    let mut variants: Vec<Value> = Vec::new();
    if step.get("flow").is_some() {
        variants.extend(smaller_node(&step["flow"]).into_iter().map(|flow| with(step, "flow", flow)));
    }
    if let Some(jobs) = step["jobs"].as_array() {
        variants.extend(smaller_list(jobs).into_iter().map(|jobs| with(step, "jobs", jobs)));
    }
    variants.extend(smaller_options(step));
    variants
}

/// A node of a flow with a part of the tree below it gone, or an option.
fn smaller_node(node: &Value) -> Vec<Value> {
    let mut variants: Vec<Value> = Vec::new();
    if let Some(children) = node["children"].as_array() {
        // The tree without its root, and without its children.
        variants.extend(children.iter().cloned());
        if let Some(bare) = node.as_object().map(|n| without(n, "children")) {
            variants.push(bare);
        }
        for (i, child) in children.iter().enumerate() {
            let mut fewer = children.clone();
            fewer.remove(i);
            if !fewer.is_empty() {
                variants.push(with(node, "children", json!(fewer)));
            }
            for smaller in smaller_node(child) {
                let mut other = children.clone();
                other[i] = smaller;
                variants.push(with(node, "children", json!(other)));
            }
        }
    }
    variants.extend(smaller_options(node));
    variants
}

/// A list with an entry less, and with each entry smaller.
fn smaller_list(jobs: &[Value]) -> Vec<Value> {
    let mut variants = Vec::new();
    for (i, job) in jobs.iter().enumerate() {
        if jobs.len() > 1 {
            let mut fewer = jobs.to_vec();
            fewer.remove(i);
            variants.push(json!(fewer));
        }
        for smaller in smaller_options(job) {
            let mut other = jobs.to_vec();
            other[i] = smaller;
            variants.push(json!(other));
        }
    }
    variants
}

/// The same with an option less, or with simple data.
fn smaller_options(job: &Value) -> Vec<Value> {
    let mut variants: Vec<Value> = Vec::new();
    for name in ["opts", "options"] {
        let without = job[name].as_object().map(without_one).unwrap_or_default();
        variants.extend(without.into_iter().map(|options| with(job, name, options)));
    }
    if job.get("data").is_some_and(|data| *data != json!({})) {
        variants.push(with(job, "data", json!({})));
    }
    variants
}

fn with(value: &Value, name: &str, part: Value) -> Value {
    let mut changed = value.clone();
    changed[name] = part;
    changed
}

fn without(map: &Map<String, Value>, name: &str) -> Value {
    let mut fewer = map.clone();
    fewer.shift_remove(name);
    fewer.into()
}

/// One option left out, or one part of an option. Not the id: npm bullmq then makes
/// one up, which is masked, and two of them cannot be told apart.
fn without_one(options: &Map<String, Value>) -> Vec<Value> {
    let mut variants: Vec<Value> =
        options.keys().filter(|name| *name != "jobId").map(|name| without(options, name)).collect();
    for (name, part) in options.iter().filter(|(name, _)| *name != "parent") {
        for smaller in part.as_object().map(without_one).unwrap_or_default() {
            let mut changed = options.clone();
            changed.insert(name.clone(), smaller);
            variants.push(changed.into());
        }
    }
    variants
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_of_a_bulk_and_nodes_of_a_flow_are_dropped() {
        let node = |name: &str| json!({"name": name, "queueName": "q", "opts": {"delay": 1}});
        let mut root = node("root");
        root["children"] = json!([node("a"), node("b")]);
        let scenario = json!({"steps": [
            {"op": "addBulk", "jobs": [{"name": "x", "opts": {"lifo": true}}, {"name": "y"}]},
            {"op": "flow", "flow": root},
        ]});
        let variants = smaller(&scenario);
        let has = |want: &dyn Fn(&Value) -> bool| variants.iter().any(want);
        assert!(has(&|v| v["steps"][0]["jobs"] == json!([{"name": "y"}])));
        assert!(has(&|v| v["steps"][0]["jobs"][0]["opts"] == json!({})));
        assert!(has(&|v| v["steps"][1]["flow"] == node("a")));
        assert!(has(&|v| v["steps"][1]["flow"]["children"] == json!([node("b")])));
        assert!(variants.iter().all(|v| v != &scenario));
    }
}
