"""What patches are annotated with: nomenclatures, CORINE Land Cover, NUTS."""
