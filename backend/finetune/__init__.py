"""Learning from the team: annotations kept as masks, jobs that train a project's head on them, versions of it."""
