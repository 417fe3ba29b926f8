// SAMPLE, never compiled and never run: there was no Swift compiler. See README.md.
import UIKit

/// A full-screen feed that pages vertically. `places` only ever grows at its end: what is on screen or buffered does not move.
/// It shows where the calls belong; your app's own cells, player and loading replace `userId`, `cloud`, `folder` and `show`.
@MainActor
class FeedViewController: UIViewController, UICollectionViewDataSource, UICollectionViewDelegateFlowLayout {
    /// The impression on screen. Buttons and the player's observers write into it: `current?.like = true`.
    private(set) var current: Impression?
    private let phone = PhoneState()
    private var places: [Place] = []
    private var shownIndex = 0
    private var scrolled: (to: CGFloat, at: TimeInterval)?
    private lazy var controller = FeedController(userId: userId, cloud: cloud, folder: folder) { [weak self] place in
        self?.append(place)
    }
    private lazy var feed: UICollectionView = {
        let layout = UICollectionViewFlowLayout()
        layout.minimumLineSpacing = 0
        let view = UICollectionView(frame: .zero, collectionViewLayout: layout)
        view.isPagingEnabled = true
        view.isPrefetchingEnabled = true // binds the next cell ahead, so that its video buffers
        view.dataSource = self
        view.delegate = self
        view.register(UICollectionViewCell.self, forCellWithReuseIdentifier: "item")
        return view
    }()

    static let gestureSeconds = 0.25 // frames further apart than that are two swipes

    var userId: Int64 { 0 }
    var cloud: URL { URL(string: "https://feed.example.com")! }
    var folder: URL { .applicationSupportDirectory.appending(path: "pocketrank") }
    func show(itemId: Int64, in cell: UICollectionViewCell) {}

    override func viewDidLoad() {
        super.viewDidLoad()
        feed.frame = view.bounds
        feed.autoresizingMask = [.flexibleWidth, .flexibleHeight]
        view.addSubview(feed)
        let center = NotificationCenter.default
        center.addObserver(self, selector: #selector(toBackground), name: UIApplication.didEnterBackgroundNotification, object: nil)
        center.addObserver(self, selector: #selector(toForeground), name: UIApplication.willEnterForegroundNotification, object: nil)
        Task { await controller.start() }
    }

    private func append(_ place: Place) {
        places.append(place)
        feed.insertItems(at: [IndexPath(item: places.count - 1, section: 0)])
        if places.count == 1 { begin(0) }
    }

    private func begin(_ index: Int) {
        shownIndex = index
        current = places.indices.contains(index) ? Impression(places[index], phone: phone) : nil
    }

    /// The main thread only makes the event and hands it to the actor.
    private func finish(_ ended: Ended, next: Int) {
        guard let impression = current, places.indices.contains(next) else { return }
        current = nil
        let event = impression.finish(
            userId: controller.userId, sessionId: controller.sessionId, ended: ended, window: view.window
        )
        let now = places[next].position
        Task { await controller.finished(event, now: now) }
    }

    // MARK: Scrolling

    func scrollViewDidScroll(_ scrollView: UIScrollView) {
        let height = max(scrollView.bounds.height, 1)
        let screens = scrollView.contentOffset.y / height
        let now = ProcessInfo.processInfo.systemUptime
        if let last = scrolled, now > last.at, now - last.at < Self.gestureSeconds {
            current?.onScroll(screensPerSecond: abs(Double(screens - last.to)) / (now - last.at))
        }
        scrolled = (screens, now)
        // The item in the middle is the one that is watched, even before the scroll view has stopped.
        let index = Int(screens.rounded())
        if index != shownIndex, places.indices.contains(index) {
            finish(.swipe, next: index)
            begin(index)
        }
    }

    override func viewWillDisappear(_ animated: Bool) {
        super.viewWillDisappear(animated)
        finish(.exit, next: shownIndex)
    }

    override func viewDidAppear(_ animated: Bool) {
        super.viewDidAppear(animated)
        if current == nil { begin(shownIndex) }
    }

    @objc private func toBackground() {
        current?.backgrounded = true
        finish(.background, next: shownIndex)
        // iOS grants some seconds for the upload.
        var task = UIBackgroundTaskIdentifier.invalid
        task = UIApplication.shared.beginBackgroundTask { UIApplication.shared.endBackgroundTask(task) }
        Task {
            await controller.stop()
            UIApplication.shared.endBackgroundTask(task)
        }
    }

    @objc private func toForeground() {
        if current == nil { begin(shownIndex) }
    }

    // MARK: Cells

    func collectionView(_ collectionView: UICollectionView, numberOfItemsInSection section: Int) -> Int { places.count }

    func collectionView(_ collectionView: UICollectionView, cellForItemAt indexPath: IndexPath) -> UICollectionViewCell {
        let cell = collectionView.dequeueReusableCell(withReuseIdentifier: "item", for: indexPath)
        show(itemId: places[indexPath.item].itemId, in: cell)
        return cell
    }

    func collectionView(
        _ collectionView: UICollectionView, layout: UICollectionViewLayout, sizeForItemAt indexPath: IndexPath
    ) -> CGSize { collectionView.bounds.size }
}
