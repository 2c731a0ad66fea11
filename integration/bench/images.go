package main

import "context"

func measureImages(context.Context, settings, string) (section, error) { return results{}, nil }
func (s settings) checkImages() error                                  { return nil }
