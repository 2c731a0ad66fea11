module github.com/lamina-snapshotter/lamina

go 1.26.6
