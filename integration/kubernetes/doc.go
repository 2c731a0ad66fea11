// Package kubernetes tests Lamina as the kubelet sees it: containerd's CRI plugin runs pods on it, as the files in
// deploy/kubernetes tell it to, and is driven over the CRI API. The manifests there are checked against the types of
// the Kubernetes API.
//
// It is a module of its own, so that nothing of Kubernetes is in Lamina's. integration/setup makes the programs that it
// needs: containerd, and a runc that is new enough for user namespaces.
//
// Root runs the tests in namespaces of their own, for processes and mounts, where /run, /var/lib and /etc are theirs.
// So the files are used under the paths that they have on a node, and the end of the tests, however it comes,
// ends what they have started and unmounts what they have mounted.
//
// Tests whose names begin with TestThin need device mapper. Where the kernel has none they run in a guest, after the others.
package kubernetes
