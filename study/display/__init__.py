"""What a person sees while a study runs: terminal, TensorBoard, a tracker."""
