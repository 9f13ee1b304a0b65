"""Expert-cache study (`hybridmoe bench cache`): policies, bounds and predictors on a trace."""
