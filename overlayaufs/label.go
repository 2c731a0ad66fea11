package overlayaufs

// labelUpperdir is the label by which containerd's overlay snapshotter tells where the directory of a snapshot is.
const labelUpperdir = "containerd.io/snapshot/overlay.upperdir"

// Labels returns the labels that a snapshot is shown with: where its content is, if the configuration says so.
func (b *Backend) Labels(c Content) map[string]string {
	if !b.config.UpperdirLabel {
		return nil
	}
	return map[string]string{labelUpperdir: b.path(c.ID, fsName)}
}
