//! Writes references to groups that can hold only a few texts out, so that the
//! expression stays linear: `(?P<s>[-/])x(?P=s)` becomes `-x-|/x/`.

use std::collections::BTreeMap;

use super::ast::{Item, Node, Reference};

/// Copies of the whole expression that are made at most.
const MAX_COPIES: usize = 8;

/// What a copied group's name ends in; the number of the copy follows.
pub(crate) const COPY: &str = "__copy";

/// The name that a group had before it was copied.
pub(crate) fn original(name: &str) -> &str {
    name.split_once(COPY).map_or(name, |(name, _)| name)
}

/// The texts that the node can match, if they are few: single characters, or none.
fn texts(node: &Node) -> Option<Vec<Node>> {
    match node {
        Node::Class { negated: false, items } => items
            .iter()
            .map(|item| match item {
                Item::Range(low, high) if low == high => Some(Node::Literal(*low)),
                _ => None,
            })
            .collect(),
        Node::Literal(c) => Some(vec![Node::Literal(*c)]),
        Node::Repeat { node, min: 0, max: Some(1), .. } => {
            let mut texts = texts(node)?;
            texts.push(Node::Empty);
            Some(texts)
        }
        _ => None,
    }
}

/// The first named group that is referred to and holds few texts.
fn candidate(node: &Node, root: &Node) -> Option<(String, Vec<Node>)> {
    if let Node::Capture { name: Some(name), node } = node {
        let reference = Node::Backreference(Reference::Name(name.clone()));
        if root.any(&|node| *node == reference)
            && let Some(texts) = texts(node)
            && texts.len() <= MAX_COPIES
        {
            return Some((name.clone(), texts));
        }
    }
    node.children().into_iter().find_map(|child| candidate(child, root))
}

/// The expression without such references.
pub(crate) fn expand_references(node: Node) -> Node {
    let conditional = |node: &Node| matches!(node, Node::Conditional { .. });
    let numbered = |node: &Node| matches!(node, Node::Backreference(Reference::Number(_)));
    // Copies change the numbers of groups.
    if node.any(&conditional) || node.any(&numbered) {
        return node;
    }
    let Some((group, texts)) = candidate(&node, &node) else { return node };
    let reference = Node::Backreference(Reference::Name(group.clone()));
    let copies = texts.iter().enumerate().map(|(i, text)| {
        node.clone().map(&mut |node| match node {
            node if node == reference => text.clone(),
            Node::Capture { name: Some(name), .. } if name == group => {
                Node::Capture { name: Some(copied(&name, i)), node: Box::new(text.clone()) }
            }
            Node::Capture { name: Some(name), node } => Node::Capture { name: Some(copied(&name, i)), node },
            Node::Backreference(Reference::Name(name)) => {
                Node::Backreference(Reference::Name(copied(&name, i)))
            }
            node => node,
        })
    });
    Node::Alternate(copies.collect())
}

fn copied(name: &str, i: usize) -> String {
    format!("{name}{COPY}{i}")
}

/// Names by the name they had before, with all their copies.
pub(crate) fn by_original<'n>(names: impl Iterator<Item = (usize, &'n str)>) -> BTreeMap<String, Vec<usize>> {
    let mut groups: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for (index, name) in names {
        groups.entry(original(name).to_owned()).or_default().push(index);
    }
    groups
}

/// Gives the first group a name if it has none, and tells it: copies have other numbers, but keep names.
pub(crate) fn name_first_group(node: Node, wanted: &str) -> (Node, Option<String>) {
    fn first(node: &mut Node, wanted: &str) -> Option<String> {
        match node {
            Node::Capture { name, .. } => Some(name.get_or_insert_with(|| wanted.to_owned()).clone()),
            Node::Flags { node, .. } | Node::Repeat { node, .. } | Node::Look { node, .. } => {
                first(node, wanted)
            }
            Node::Concat(nodes) | Node::Alternate(nodes) => {
                nodes.iter_mut().find_map(|node| first(node, wanted))
            }
            Node::Conditional { yes, no, .. } => first(yes, wanted).or_else(|| first(no, wanted)),
            _ => None,
        }
    }
    let mut node = node;
    let name = first(&mut node, wanted);
    (node, name)
}
