"""Files that an export carries beside the weights, as they are: they import nothing of dlmjax."""
