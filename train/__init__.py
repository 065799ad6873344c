"""Training of SkipClick: photos with instance masks in, a checkpoint that the backend serves out."""
