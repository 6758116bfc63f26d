//! Recipe documents: YAML trees with positions.
