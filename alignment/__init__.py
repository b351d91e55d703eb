"""What is changed by training: preference pairs, tuning, learners, distillation."""
