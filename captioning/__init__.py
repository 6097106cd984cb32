"""What the steps hand each other: one file a concept, its writer beside its reader."""
